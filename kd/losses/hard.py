"""Losses on labels and on the student's own distribution: cross-entropy and entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses.reduce import check, reduce
from kd.registry import losses


def labelled(labels: Tensor) -> Tensor:
    """Which samples [B] have a label: class numbers [B] of at least 0, or probabilities [B, C] that are not all 0."""
    return labels >= 0 if labels.ndim == 1 else labels.sum(dim=-1) > 0


def cross_entropy(student: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the labelled samples of the batch of -sum_c y_c log softmax(student)_c, in nats; 0 if there are none.

    Args:
        student: logits [B, C].
        labels: class numbers [B], -1 where not known, or class probabilities [B, C], all 0 where not known.
        label_smoothing: eps; the target becomes (1 - eps) * y + eps / C (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
    """
    known = labelled(labels)
    if labels.is_floating_point():
        labels = labels.to(student.dtype)
    each = F.cross_entropy(student, labels, ignore_index=-1, reduction="none", label_smoothing=label_smoothing)
    return (each * known).sum() / known.sum().clamp(min=1)


@losses.register("ce")
class CE(nn.Module):
    """CE(student, labels), natural log, mean over the batch.

    Labels are class numbers [B] or probabilities [B, C]; samples without one do not count. See
    :func:`cross_entropy`.
    """

    takes_unlabelled = True
    takes_mixed = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(student, labels, self.label_smoothing)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""


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
