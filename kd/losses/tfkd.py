"""Tf-KD: a virtual teacher from the labels (Yuan et al. 2020, arXiv:1909.11723)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import VARIANTS, check_choice, check_positive
from kd.losses._logits import check_one_each, checked_logits, divergence
from kd.registry import losses


def virtual_teacher(labels: Tensor, logits: Tensor, correct: float = 0.99) -> Tensor:
    """Probabilities shaped like ``logits`` [B, C]: ``correct`` for the label, the rest shared by the others.

    Linear in the label's distribution, hence defined for class numbers [B] and for probabilities [B, C] alike.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise InputError(f"a virtual teacher needs at least 2 classes, got logits {list(logits.shape)}")
    if labels.ndim == 1:
        labels = labels[:, None] == torch.arange(classes, device=labels.device)
    other = (1 - correct) / (classes - 1)
    return other + (correct - other) * labels.to(logits.dtype)


def tfkd(student: Tensor, labels: Tensor, T: float = 20.0, correct: float = 0.99, variant: str = "code") -> Tensor:
    """KL(virtual teacher softened by T || student), mean over the batch; see :class:`TfKD`."""
    p = virtual_teacher(labels, student, correct)
    if variant == "code":
        return divergence(F.log_softmax(student, dim=1), F.log_softmax(p / T, dim=1)).mean()
    return divergence(F.log_softmax(student / T, dim=1), F.log_softmax(p.log() / T, dim=1)).mean()


@losses.register("tfkd")
class TfKD(nn.Module):
    """KL(v || student), v softened by T from: correct for the label, (1 - correct) / (C - 1) for the others; no T^2.

    Logits [B, C], labels [B] or [B, C]; no teacher runs. Tf-KD_reg of Yuan et al. 2020 (arXiv:1909.11723), eq. 8
    and 9. ``variant=code`` softens v by softmax(v / T), probabilities taken for logits, and leaves the student at
    T = 1; ``paper`` softens both sides as a temperature does. The authors' mean over B * C times 100 is, with 100
    classes, this mean over the batch. Published: 0.9 * CE + 0.1 * this.
    """

    takes_mixed = True

    def __init__(self, T: float = 20.0, correct: float = 0.99, variant: str = "code") -> None:
        super().__init__()
        check_positive(T=T)
        if not 0 < correct < 1:
            raise InputError(f"correct must lie between 0 and 1, got {correct}")
        check_choice("variant", variant, VARIANTS)
        self.T, self.correct, self.variant = T, correct, variant

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        check_one_each("tfkd", labels, checked_logits("tfkd", "student", student))
        return tfkd(student, labels, self.T, self.correct, self.variant)

    def extra_repr(self) -> str:
        return f"T={self.T:g}, correct={self.correct:g}" + f", variant={self.variant}" * (self.variant != "code")
