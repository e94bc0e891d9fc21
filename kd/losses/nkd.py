"""NKD: the target's probability and the normalised others (Yang et al. 2023, arXiv:2303.13005)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._checks import check_not_negative, check_positive
from kd.losses._logits import class_numbers, logit_pair
from kd.losses.dkd import split_target
from kd.registry import losses


def nkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, T: float = 1.0) -> tuple[Tensor, Tensor]:
    """Target and non-target part per sample [B].

    -p_t(y) log p_s(y) at T = 1, and T^2 times the cross-entropy of the other classes' distributions at T.
    """
    log_s, log_t = (F.log_softmax(z, dim=1).gather(1, labels[:, None]).squeeze(1) for z in (student, teacher))
    (_, q_s), (_, q_t) = split_target(student, labels, T), split_target(teacher, labels, T)
    return -log_t.exp() * log_s, -(T**2) * (q_t.exp() * q_s).sum(dim=1)


@losses.register("nkd")
class NKD(nn.Module):
    """-p_t(y) log p_s(y) + gamma * T^2 * H(q_t, q_s), q over the classes other than y; mean over the batch.

    Logits [B, C], labels [B]; of soft labels [B, C] the largest class counts, as in the authors' code. Yang et
    al. 2023 (arXiv:2303.13005): added to CE with weight 1. A cross-entropy, so its least value is not 0.
    Published: ImageNet T 1, gamma 1.5; CIFAR-100 T 3, gamma 3.5 for resnet pairs.
    """

    takes_mixed = True

    def __init__(self, gamma: float = 1.5, T: float = 1.0, standardise: bool = False) -> None:
        super().__init__()
        check_positive(T=T)
        check_not_negative(gamma=gamma)
        self.gamma, self.T, self.standardise = gamma, T, standardise

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        student, teacher = logit_pair("nkd", student, teacher, self.standardise)
        labels = labels.argmax(dim=1) if labels.ndim == 2 else labels
        target, other = nkd_terms(student, teacher, class_numbers("nkd", labels, student), self.T)
        return target.mean() + self.gamma * other.mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, T={self.T:g}" + ", standardise" * self.standardise
