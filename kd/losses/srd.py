"""SRD: simple recipe distillation (Miles and Mikolajczyk 2024, arXiv:2303.11098)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._maps import BatchNorm, as_map, pool
from kd.losses.divergences import kl
from kd.registry import losses


def srd(student: list[Tensor], teacher: list[Tensor], exponent: float = 4.0, T: float = 1.0) -> Tensor:
    """2 log sum |f_s - f_t|^exponent + KL(p_t || p_s) without T^2, for [features, logits] of both sides."""
    total = (student[0] - teacher[0]).abs().pow(exponent).sum()
    return 2 * total.clamp_min(torch.finfo(total.dtype).tiny).log() + kl(student[1], teacher[1], T) / T**2


@losses.register("srd")
class SRD(nn.Module):
    """2 log sum |N(W f_s) - N(f_t)|^a + KL(p_t || p_s) without T^2, N batch normalisation without scale and shift.

    Miles and Mikolajczyk 2024 (arXiv:2303.11098); each side is a list of two layers, [features, logits], where maps
    are pooled to vectors [B, C]. a = 4, T = 1, eps 1e-4 and weight 1 beside cross-entropy are the published
    ImageNet setting. At least two samples.
    """

    def __init__(self, exponent: float = 4.0, T: float = 1.0, eps: float = 1e-4) -> None:
        super().__init__()
        check_positive(exponent=exponent, T=T, eps=eps)
        if exponent < 1:
            raise InputError(f"exponent must be at least 1, got {exponent}")
        self.exponent, self.T, self.eps = exponent, T, eps
        self.project, self.norm = nn.Sequential(), nn.Sequential()

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        (f_s, _), (f_t, _) = self._sides(student, teacher)
        inputs, outputs = f_s.shape[1], f_t.shape[1]

        def norm() -> nn.Module:
            return BatchNorm(outputs, eps=self.eps, affine=False)

        self.project = nn.Sequential(nn.Conv2d(inputs, outputs, 1), norm()).to(f_s.device, f_s.dtype)
        self.norm = nn.Sequential(norm()).to(f_s.device, f_s.dtype)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        (f_s, z_s), (f_t, z_t) = self._sides(student, teacher)
        if not len(self.project):
            raise InputError("SRD: call build(student, teacher) with example tensors first")
        return srd([self.project(f_s), z_s], [self.norm(f_t), z_t], self.exponent, self.T)

    def _sides(self, student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        sides = []
        for side, layers in (("student", student), ("teacher", teacher)):
            if isinstance(layers, Tensor) or len(layers) != 2 or layers[1].ndim != 2:
                raise InputError(f"SRD needs two layers of the {side}: [features, logits [B, C]]")
            sides.append((pool(as_map("SRD", layers[0], vectors=True), (1, 1)), layers[1]))
        return sides

    def extra_repr(self) -> str:
        return f"exponent={self.exponent:g}, T={self.T:g}"
