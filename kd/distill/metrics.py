"""Metrics of validation and test: the student's accuracy, calibration and similarity to the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, Metric, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)

from kd.data.labels import UNKNOWN
from kd.errors import InputError, TrainingFailed
from kd.losses.cross_entropy import class_of, labelled
from kd.losses.divergences import kl, soft_cross_entropy

HINT = "a lower optim.lr or a larger data.batch_size often helps; check the running statistics of its batch norms"


class Accuracy(MulticlassAccuracy):
    """The share of correct predictions among the labelled samples; nan, not 0, if there are none."""

    def compute(self) -> Tensor:
        counted = torch.as_tensor(self.tp + self.fn).sum()  # type: ignore[operator]
        return torch.where(counted > 0, super().compute(), torch.nan)


class Mean(MeanMetric):
    """A mean that rounds identically at each validation of a float64 run, unlike torchmetrics' own."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.as_tensor(self.mean_value).dtype


class Scores(nn.Module):
    """Accumulates metrics over a data set and over all processes, counting each sample once.

    ``acc`` and ``top5`` (with more than 10 classes) are shares in [0, 1]; ``nll`` is a mean in nats; ``ece`` is the
    expected calibration error with 15 equal bins (Guo et al. 2017, arXiv:1706.04599); with a teacher, ``teacher_acc``
    and ``teacher_nll`` are its own, ``agreement`` is the share of equal predictions and ``kl`` the mean
    KL(teacher || student) at T = 1 in nats. Metrics that need labels use the labelled samples, and are nan if there
    are none; if labels are probabilities, the most probable class is the correct one.

    Raises:
        InputError: there are fewer than two classes.
    """

    def __init__(self, classes: int, with_teacher: bool) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"the data has {classes} class, but classification needs at least 2")
        self.student = nn.ModuleDict({"acc": Accuracy(classes, average="micro", ignore_index=UNKNOWN), "nll": Mean()})
        if classes > 10:
            self.student["top5"] = Accuracy(classes, average="micro", top_k=5, ignore_index=UNKNOWN)
        self.student["ece"] = MulticlassCalibrationError(classes, n_bins=15, ignore_index=UNKNOWN)
        self.confusion = MulticlassConfusionMatrix(classes, ignore_index=UNKNOWN)
        self.strays = nn.ModuleDict({side: SumMetric() for side in ("student", "teacher")[: 1 + with_teacher]})
        self.teacher = nn.ModuleDict()
        if with_teacher:
            self.teacher["teacher_acc"] = Accuracy(classes, average="micro", ignore_index=UNKNOWN)
            for name in ("teacher_nll", "agreement", "kl"):
                self.teacher[name] = Mean()

    def update(self, student: Tensor, labels: Tensor, teacher: Tensor | None) -> None:
        """Adds logits [B, C] and labels: class numbers [B], -1 if unknown, or probabilities [B, C]."""
        student, classes = student.float(), class_of(labels)
        for side, logits in (("student", student), ("teacher", teacher)):
            if logits is not None:
                self.strays[side].update((~logits.isfinite().all(-1)).sum())  # type: ignore[operator]
        for name in ("acc", "top5", "ece"):
            if name in self.student:
                self._metric(name).update(student.softmax(-1), classes)
        self._add_nll("nll", student, labels)
        self.confusion.update(student, classes)
        if teacher is not None:
            teacher = teacher.float()
            self._metric("teacher_acc").update(teacher, classes)
            self._add_nll("teacher_nll", teacher, labels)
            self._metric("agreement").update((student.argmax(-1) == teacher.argmax(-1)).float())
            self._metric("kl").update(kl(student, teacher, T=1.0, reduction="none").sum(-1))

    def _add_nll(self, name: str, logits: Tensor, labels: Tensor) -> None:
        if labels.is_floating_point():
            each = soft_cross_entropy(logits, labels, reduction="none").sum(-1)
        else:
            each = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        self._metric(name).update(each, labelled(labels).to(each))

    def not_finite(self) -> dict[str, int]:
        """The number of samples since the last call with non-finite logits, by side; means exclude such samples."""
        counts = {}
        for side, metric in self.strays.items():
            counts[side] = int(metric.compute()) if metric.update_called else 0  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]
        return counts

    def check_finite(self, part: str) -> None:
        """Raises a TrainingFailed if any logits were not finite, as the metrics are then meaningless."""
        for side, count in self.not_finite().items():
            if count:
                raise TrainingFailed(f"the {side}'s logits are not finite for {count} {part} images: {HINT}")

    def named(self) -> dict[str, Metric]:
        """The metrics by name, without the confusion matrix."""
        return {name: self._metric(name) for name in (*self.student, *self.teacher)}

    def _metric(self, name: str) -> Metric:
        metric = (self.student if name in self.student else self.teacher)[name]
        assert isinstance(metric, Metric)
        return metric


class Predictions(nn.Module):
    """All logits on a data set, in its order, over all processes; none if the student's exceed ``most`` numbers."""

    def __init__(self, most: int = 2**26) -> None:
        super().__init__()
        self.most, self.count = most, 0
        self.parts = nn.ModuleDict()

    def update(self, index: Tensor | None, labels: Tensor, student: Tensor, teacher: Tensor | None) -> None:
        """Adds positions [B], labels and logits [B, C]."""
        self.count += student.numel()
        if self.count > self.most:
            self.parts.clear()
            return
        tensors = {"index": index, "labels": class_of(labels), "student": student, "teacher": teacher}
        for name, values in tensors.items():
            if values is not None:
                if name not in self.parts:
                    self.parts[name] = CatMetric(nan_strategy="disable").to(values.device)
                self.parts[name].update(values.double() if name in ("index", "labels") else values)  # type: ignore[operator]

    def compute(self) -> dict[str, Tensor]:
        """``labels`` [N], and ``student`` and any ``teacher`` in half precision [N, C]; empty if there are too many."""
        columns = {name: metric.compute() for name, metric in self.parts.items()}  # type: ignore[operator]
        if "index" in columns:
            order = columns.pop("index").argsort()
            columns = {name: values[order] for name, values in columns.items()}
        return {name: values.long() if name == "labels" else values.half() for name, values in columns.items()}
