"""TTM: the teacher's distribution transformed, the student's as it is (Zheng and Yang 2024, arXiv:2402.11148)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._checks import check_positive
from kd.losses._logits import divergence, logit_pair
from kd.registry import losses


def power_sum(logits: Tensor, gamma: float) -> Tensor:
    """U = sum_c p_c^gamma per sample, p = softmax(logits): 1 for a one-hot p, C^(1 - gamma) for a uniform one."""
    return (gamma * F.log_softmax(logits, dim=1)).logsumexp(dim=1).exp()


def ttm(student: Tensor, teacher: Tensor, gamma: float = 0.1) -> Tensor:
    """KL(p^gamma / U || q) per sample, p and q at T = 1: only the teacher is softened, by T = 1 / gamma."""
    return divergence(F.log_softmax(student, dim=1), F.log_softmax(gamma * teacher, dim=1))


@losses.register("ttm")
class TTM(nn.Module):
    """KL(softmax(gamma * teacher) || softmax(student)), mean over the batch; no T on the student, no T^2.

    Logits [B, C]. Transformed teacher matching, Zheng and Yang 2024 (arXiv:2402.11148), eq. 2: KD plus a Renyi
    entropy that rewards a smooth student. Published weight per pair (table 8), 7 to 101 beside CE: 100 for
    resnet32x4 -> resnet8x4, 45 for vgg13 -> vgg8.
    """

    def __init__(self, gamma: float = 0.1, standardise: bool = False) -> None:
        super().__init__()
        check_positive(gamma=gamma)
        self.gamma, self.standardise = gamma, standardise

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return ttm(*logit_pair("ttm", student, teacher, self.standardise), self.gamma).mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}" + ", standardise" * self.standardise


@losses.register("wttm")
class WTTM(TTM):
    """U * KL(softmax(gamma * teacher) || softmax(student)), U = sum_c p_c^gamma of the teacher, mean over the batch.

    TTM with more weight on samples whose teacher is unsure; same paper, eq. 23. Published weight per pair beside
    CE, 1.5 to 4 among relatives: 3 for resnet32x4 -> resnet8x4.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = logit_pair("wttm", student, teacher, self.standardise)
        return (power_sum(teacher, self.gamma) * ttm(student, teacher, self.gamma)).mean()
