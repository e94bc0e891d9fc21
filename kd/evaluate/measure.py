"""The metrics of one dataset, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric

from kd.data.batch import Batch
from kd.distill.metrics import Scores
from kd.errors import InputError

BINS = 15


class Evaluation(nn.Module):
    """All metrics of one dataset: :class:`Scores`, the Brier score, reliability and confusion."""

    def __init__(self, classes: int, with_teacher: bool) -> None:
        super().__init__()
        self.scores = Scores(classes, with_teacher)
        self.brier = MeanMetric()
        self.confidence, self.correct = CatMetric(), CatMetric()
        for metric in (self.brier, *self.scores.named().values()):
            if isinstance(metric, MeanMetric):
                metric.set_dtype(torch.float64)  # sums of many small numbers

    def update(self, student: Tensor, labels: Tensor, teacher: Tensor | None) -> None:
        """Adds logits [B, C] and labels [B].

        Raises:
            InputError: logits that are not finite.
        """
        if bad := int((~student.isfinite().all(-1)).sum()):
            raise InputError(f"the student's logits are not finite for {bad} of {len(student)} images")
        self.scores.update(student, labels, teacher)
        p = student.double().softmax(-1)
        self.brier.update((p - nn.functional.one_hot(labels, p.shape[-1])).square().sum(-1))
        confidence, predicted = p.max(-1)
        self.confidence.update(confidence.float())
        self.correct.update((predicted == labels).float())

    def metrics(self) -> dict[str, float]:
        """The scores of ``summary.json``, and ``brier``: the mean of sum_c (p_c - y_c)^2, in [0, 2]."""
        scores = {name: float(metric.compute()) for name, metric in self.scores.named().items()}
        return {**scores, "brier": float(self.brier.compute())}

    def reliability(self) -> dict[str, list[Any]]:
        """For each of 15 equal confidence bins the number of images, mean confidence and accuracy."""
        edges = torch.linspace(0, 1, BINS + 1, device=self.confidence.device)
        confidence, correct = (metric.compute().flatten() for metric in (self.confidence, self.correct))
        bins = torch.bucketize(confidence, edges[1:-1], right=True)
        count, sums, hits = (
            torch.bincount(bins, weights, BINS).tolist() for weights in (None, confidence.double(), correct.double())
        )
        return {
            "edges": [i / BINS for i in range(BINS + 1)],
            "count": [int(n) for n in count],
            "confidence": [total / n if n else None for total, n in zip(sums, count)],
            "accuracy": [hit / n if n else None for hit, n in zip(hits, count)],
        }

    def confusion(self) -> list[list[int]]:
        """The number of images of each true class (row) predicted as each class (column)."""
        return self.scores.confusion.compute().tolist()


@torch.no_grad()
def measure(
    student: Callable[[Tensor], Tensor],
    teacher: nn.Module | None,
    batches: Iterable[Batch],
    classes: int,
    device: torch.device,
) -> Evaluation:
    """Evaluates student and teacher on batches of images.

    Raises:
        InputError: the networks do not accept the images, or logits are not finite.
    """
    evaluation = Evaluation(classes, teacher is not None).to(device)
    student = student.to(device) if isinstance(student, nn.Module) else student
    teacher = teacher and teacher.to(device)
    terminal = Console(stderr=True)
    for batch in track(batches, "evaluating", console=terminal, transient=True, disable=not terminal.is_terminal):
        images, labels = batch.images.to(device), batch.labels.to(device)
        try:
            logits = student(images)
            teacher_logits = None if teacher is None else teacher(Batch(images, labels))[""]
        except RuntimeError as error:
            shape, line = "x".join(map(str, images.shape[1:])), str(error).splitlines()[0]
            raise InputError(f"the run's networks do not accept images of {shape}: {line}") from error
        evaluation.update(logits, labels, teacher_logits)
    return evaluation
