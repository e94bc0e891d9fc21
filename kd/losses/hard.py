"""Losses on labels and on the student's own distribution: cross-entropy and entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses.reduce import check, reduce
from kd.registry import losses


def labelled(labels: Tensor) -> Tensor:
    """Which samples [B] have a label: class numbers [B] of at least 0, or probabilities [B, C] that are not all 0."""
    return labels >= 0 if labels.ndim == 1 else labels.sum(dim=-1) > 0


def cross_entropy(
    student: Tensor, labels: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean over the labelled samples of the batch of -sum_c y_c log softmax(student)_c, in nats; 0 if there are none.

    Args:
        student: logits [B, C].
        labels: class numbers [B], -1 where not known, or class probabilities [B, C], all 0 where not known.
        label_smoothing: eps; the target becomes (1 - eps) * y + eps / C (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
        weight: of each class [C]: sample i then has w_i = sum_c y_c weight_c, and the mean is torch's weighted one,
            sum_i w_i loss_i / sum_i w_i. (For probabilities as labels torch itself divides by the batch's size.)
    """
    known = labelled(labels)
    if labels.is_floating_point():
        labels = labels.to(student.dtype)
    if weight is not None:
        weight = weight.to(student)
    each = F.cross_entropy(student, labels, weight, ignore_index=-1, reduction="none", label_smoothing=label_smoothing)
    return (each * known).sum() / samples_of(labels, known, weight)


def samples_of(labels: Tensor, known: Tensor, weight: Tensor | None) -> Tensor:
    """What a sum over the labelled samples is divided by for their mean: their count, or their classes' weights."""
    if weight is None:
        return known.sum().clamp(min=1)
    each = weight[labels.clamp(min=0)] if labels.ndim == 1 else labels.to(weight) @ weight
    return (each * known).sum().clamp(min=torch.finfo(weight.dtype).tiny)


class ClassWeights(nn.Module):
    """Weights of classes: numbers, or ``balanced``: N / (C * n_c), for n_c of the N labelled training images.

    Raises:
        InputError: numbers that are not at least 0, finite, one for each class and one of them above 0; or
            ``balanced`` for data that does not say its ``train_labels``.
    """

    def __init__(self, stated: Sequence[float] | str | None) -> None:
        super().__init__()
        if isinstance(stated, str | None):
            if stated not in (None, "balanced"):
                raise InputError(f"class_weights must be a number for each class, or balanced; got {stated!r}")
        elif (
            not stated or not all(isinstance(w, (int, float)) and 0 <= w < math.inf for w in stated) or not any(stated)
        ):
            raise InputError(f"class_weights must be finite numbers of at least 0, not all 0; got {stated}")
        self.stated = stated
        self.labels: Tensor | None = None
        self.value: Tensor | None
        self.register_buffer("value", None, persistent=False)

    def make(self, classes: int, like: Tensor) -> None:
        """Makes the weights [C] of so many classes."""
        if self.stated is None:
            return
        if self.stated == "balanced":
            if self.labels is None:
                raise InputError("class_weights=balanced needs data that says its train_labels; give numbers instead")
            counts = self.labels[self.labels >= 0].bincount(minlength=classes).double()
            values = torch.where(counts > 0, counts.sum() / (classes * counts.clamp(min=1)), 0)
        elif len(self.stated) != classes:
            raise InputError(f"class_weights has {len(self.stated)} numbers for the data's {classes} classes")
        else:
            values = torch.tensor([float(w) for w in self.stated], dtype=torch.float64)
        self.value = values.to(like)

    def extra_repr(self) -> str:
        return "" if self.stated is None else f"class_weights={self.stated}"


class Weighted(nn.Module):
    """A loss on labels with weights of classes."""

    takes_unlabelled = True
    takes_mixed = True

    def __init__(self, class_weights: Sequence[float] | str | None) -> None:
        super().__init__()
        self.class_weights = ClassWeights(class_weights)

    def attach_data(self, samples: int, labels: Tensor) -> None:
        """Takes the training labels [N]."""
        self.class_weights.labels = labels if self.class_weights.stated == "balanced" else None

    def build(self, student: Tensor) -> None:
        """Makes the weights for as many classes as ``student``, logits [B, C], has."""
        self.class_weights.make(student.shape[1], student)


@losses.register("ce")
class CE(Weighted):
    """CE(student, labels), natural log, mean over the batch.

    Labels are class numbers [B] or probabilities [B, C]; samples without one do not count. ``class_weights``, a number
    for each class or ``balanced`` (N / (C * n_c)), makes it torch's weighted mean. See :func:`cross_entropy`.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | str | None = None) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(student, labels, self.label_smoothing, self.class_weights.value)

    def extra_repr(self) -> str:
        smoothing = f"label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return ", ".join(filter(None, [smoothing, self.class_weights.extra_repr()]))


def entropy(logits: Tensor, T: float = 1.0, reduction: str = "batchmean", unit: str = "nats") -> Tensor:
    """H(p) = -sum_c p_c log p_c of p = softmax(logits / T), for logits [B, C]."""
    log_p = F.log_softmax(logits / T, dim=-1)
    return reduce(-log_p.exp() * log_p, reduction, unit)


@losses.register("entropy")
class Entropy(nn.Module):
    """H(student) = -sum_c p_c log p_c, mean over the batch.

    ``maximise=true`` negates it: the confidence penalty of Pereyra et al. 2017 (arXiv:1701.06548).
    """

    def __init__(self, T: float = 1.0, maximise: bool = False, unit: str = "nats") -> None:
        super().__init__()
        check("batchmean", unit, T=T)
        self.T, self.maximise, self.unit = T, maximise, unit

    def forward(self, student: Tensor) -> Tensor:
        value = entropy(student, self.T, unit=self.unit)
        return -value if self.maximise else value

    def extra_repr(self) -> str:
        return f"T={self.T:g}" + (", maximise" if self.maximise else "")
