"""KD-SVD: singular vectors of consecutive layers (Lee, Kim and Song 2018, ECCV)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._maps import Chained
from kd.registry import losses


def right_singular(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Singular values [B, r] and the ``count`` leading right vectors [B, C, count] of maps [B, C, H, W] as HW x C.

    The vectors carry the first-order gradient dv_i = sum_j v_j (v_j' dA v_i) / (l_i - l_j), A = F'F with
    eigenvalues l. Differences below 1e-6 of the largest eigenvalue count as 0, so that the gradient is
    finite where singular values coincide and 0 where a map is 0. The values are constants.
    """
    matrix = maps.flatten(2).mT
    with torch.no_grad():
        eigenvalues, basis = _eigen(matrix)
        leading = basis[..., :count]
        scale = eigenvalues[:, :1, None].clamp_min(torch.finfo(maps.dtype).tiny)
        share = eigenvalues[:, :, None] / scale
        gaps = share[:, :count].mT - share
    applied = matrix.mT @ (matrix @ leading)
    change = (applied - applied.detach()) / scale  # 0, with the gradient of A v
    inside = basis.mT @ change
    vectors = leading + basis @ (_inverse(gaps) * inside)
    if basis.shape[2] < basis.shape[1]:  # directions without a singular value
        vectors = vectors + (change - basis @ inside) * _inverse(share[:, :count].mT)
    return eigenvalues.sqrt(), vectors


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of F'F [B, r], falling, and vectors [B, C, r], from the smaller of F'F and FF'.

    An order of magnitude faster than the singular value decomposition, and exact enough for leading vectors.
    """
    wide = matrix.shape[1] < matrix.shape[2]
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    values, vectors = values.flip(1).clamp_min(0), vectors.flip(2)
    return values, F.normalize(matrix.mT @ vectors, dim=1) if wide else vectors


def _inverse(gaps: Tensor) -> Tensor:
    return gaps / (gaps.square() + 1e-12)


def kdsvd(student: Sequence[Tensor], teacher: Sequence[Tensor], k: int = 1) -> Tensor:
    """sum (R_s - R_t)^2 / B over consecutive layers, R = exp(-d^2 / 8) of all component differences d.

    The components are those of the k leading right singular vectors of either layer, C x C' x k differences.
    """
    layers = [_aligned(s, t, k) for s, t in zip(student, teacher)]
    parts = [
        (_radial(s_below, s_above) - _radial(t_below, t_above)).square().sum()
        for (s_below, t_below), (s_above, t_above) in pairwise(layers)
    ]
    return torch.stack(parts).sum() / len(student[0])


def _radial(below: Tensor, above: Tensor) -> Tensor:
    return (-(above.unsqueeze(2) - below.unsqueeze(1)).square() / 8).exp()


def _aligned(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The teacher's k leading vectors and the student's most like them, scaled by the teacher's values."""
    with torch.no_grad():
        values, target = right_singular(teacher, k)
        target = target * torch.where(target.sum(1, keepdim=True) < 0, -1.0, 1.0).to(target)
        weights = F.normalize(values[:, :k], dim=1).unsqueeze(1)
    _, vectors = right_singular(student, k + 3)
    cosines = vectors.detach().mT @ target
    best = cosines.abs().argmax(1, keepdim=True)
    signs = torch.where(cosines.gather(1, best) < 0, -1.0, 1.0).to(target)
    vectors = vectors.gather(2, best.expand(-1, vectors.shape[1], -1)) * signs
    return vectors * weights, target * weights


@losses.register("kdsvd")
class KDSVD(Chained):
    """sum (R_s - R_t)^2 / B, R = exp(-d^2 / 8) of differences between k singular vectors of consecutive layers.

    A list of at least two maps [B, C, H, W] of each side, of equal channels in the paper (see :class:`Chained`);
    sizes may differ. Lee, Kim and Song 2018 (ECCV), in RepDistiller's form: right singular vectors of HW x C, the
    student's chosen out of its k + 3 leading ones; weight 1. A singular vector has no sign of its own: the teacher's
    are turned so that their entries have a positive sum, which makes the value independent of the solver. The solver
    synchronises host and device.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        check_positive(k=k)
        self.k = k

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        layers = self.layers(student, teacher)
        rank = min(min(x.shape[1], x[0, 0].numel()) for layer in layers for x in layer)
        if rank < self.k:
            raise InputError(f"kdsvd with k={self.k} needs {self.k} singular vectors, but a layer has only {rank}")
        s, t = zip(*layers)
        return kdsvd(s, t, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
