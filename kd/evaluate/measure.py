"""The measures of one data set, streamed."""

from __future__ import annotations

from collections.abc import Callable
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
    """All measures of one data set, streamed: :class:`Scores`, and what a diagram of them needs besides."""

    def __init__(self, classes: int, with_teacher: bool) -> None:
        super().__init__()
        self.scores = Scores(classes, with_teacher)
        self.brier = MeanMetric()
        self.confidence, self.right = CatMetric(), CatMetric()
        for metric in (self.brier, *self.scores.named().values()):
            if isinstance(metric, MeanMetric):
                metric.set_dtype(torch.float64)  # sums of many small numbers

    def update(self, student: Tensor, labels: Tensor, teacher: Tensor | None) -> None:
        """Adds logits [B, C] and labels [B].

        Raises:
            InputError: logits that are not finite.
        """
        if bad := int((~student.isfinite().all(-1)).sum()):
            raise InputError(f"the student gives logits that are not finite for {bad} of {len(student)} images")
        self.scores.update(student, labels, teacher)
        p = student.double().softmax(-1)
        self.brier.update((p - nn.functional.one_hot(labels, p.shape[-1])).square().sum(-1))
        confidence, answer = p.max(-1)
        self.confidence.update(confidence.float())
        self.right.update((answer == labels).float())

    def metrics(self) -> dict[str, float]:
        """The scores of ``summary.json``, and ``brier``: the mean of sum_c (p_c - y_c)^2, in [0, 2]."""
        found = {name: float(metric.compute()) for name, metric in self.scores.named().items()}
        return {**found, "brier": float(self.brier.compute())}

    def reliability(self) -> dict[str, list[Any]]:
        """For each of 15 equal bins of confidence the count of images, mean confidence and accuracy."""
        edges = torch.linspace(0, 1, BINS + 1, device=self.confidence.device)
        confidence, right = (metric.compute().flatten() for metric in (self.confidence, self.right))
        bins = torch.bucketize(confidence, edges[1:-1], right=True)
        count, sums, hits = (
            torch.bincount(bins, weights, BINS).tolist() for weights in (None, confidence.double(), right.double())
        )
        return {
            "edges": [i / BINS for i in range(BINS + 1)],
            "count": [int(n) for n in count],
            "confidence": [total / n if n else None for total, n in zip(sums, count)],
            "accuracy": [hit / n if n else None for hit, n in zip(hits, count)],
        }

    def confusion(self) -> list[list[int]]:
        """How many images of each true class (row) were taken for each class (column)."""
        return self.scores.confusion.compute().tolist()


@torch.no_grad()
def answer(
    student: Callable[[Tensor], Tensor], teacher: nn.Module | None, given: Any, classes: int, place: torch.device
) -> Evaluation:
    """Both networks' answers to batches of images, measured.

    Raises:
        InputError: images that the networks do not take, or logits that are not finite.
    """
    measured = Evaluation(classes, teacher is not None).to(place)
    student = student.to(place) if isinstance(student, nn.Module) else student
    teacher = teacher and teacher.to(place)
    terminal = Console(stderr=True)
    for batch in track(given, "measuring", console=terminal, transient=True, disable=not terminal.is_terminal):
        images, labels = batch.images.to(place), batch.labels.to(place)
        try:
            logits = student(images)
            told = None if teacher is None else teacher(Batch(images, labels))[""]
        except RuntimeError as error:
            shape, line = "x".join(map(str, images.shape[1:])), str(error).splitlines()[0]
            raise InputError(f"the run's networks do not take images of {shape}: {line}") from error
        measured.update(logits, labels, told)
    return measured
