"""DKD: target and non-target classes apart (Zhao et al. 2022, arXiv:2203.08679)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_not_negative, check_positive
from kd.losses._logits import class_numbers, divergence, logit_pair
from kd.registry import losses


def split_target(logits: Tensor, labels: Tensor, T: float = 1.0) -> tuple[Tensor, Tensor]:
    """Splits softmax(logits / T) at the target class.

    Returns:
        log (p_y, 1 - p_y) [B, 2], and the log-probabilities of the other classes among themselves [B, C - 1].
        Both come from sums of exponentials, never from 1 - p_y, and stay finite.
    """
    if logits.shape[1] < 2:
        raise InputError(f"a target class is split from at least one other, got logits {list(logits.shape)}")
    target = labels[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= target)
    scaled = logits / T
    z_other = scaled.gather(1, others)
    mass = z_other.logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([scaled.gather(1, target), mass], dim=1), dim=1), z_other - mass


def dkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, T: float = 4.0) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD per sample [B], with their T^2.

    KD is TCKD + (1 - p_y) * NCKD with the teacher's p_y; apart, the confident sample keeps its NCKD.
    """
    (b_s, q_s), (b_t, q_t) = split_target(student, labels, T), split_target(teacher, labels, T)
    return T**2 * divergence(b_s, b_t), T**2 * divergence(q_s, q_t)


@losses.register("dkd")
class DKD(nn.Module):
    """alpha * TCKD + beta * NCKD: T^2 * KL of (target, rest) and T^2 * KL among the rest, mean over the batch.

    Logits [B, C], labels [B]; NCKD is 0 for 2 classes. Zhao et al. 2022 (arXiv:2203.08679), eq. 7. Published
    on CIFAR-100: weight 1 beside CE, 20 epochs of warm-up, and beta per pair: 8 for resnet32x4, 6 for wrn and
    vgg, 2 for resnet56 and resnet110 teachers; ImageNet T 1, beta 0.5.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, T: float = 4.0, standardise: bool = False) -> None:
        super().__init__()
        check_positive(T=T)
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.T, self.standardise = alpha, beta, T, standardise

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        student, teacher = logit_pair("dkd", student, teacher, self.standardise)
        tckd, nckd = dkd_terms(student, teacher, class_numbers("dkd", labels, student), self.T)
        return self.alpha * tckd.mean() + self.beta * nckd.mean()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}, T={self.T:g}" + ", standardise" * self.standardise
