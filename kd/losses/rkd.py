"""RKD: distances and angles between samples (Park et al. 2019, arXiv:1904.05068)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_not_negative
from kd.losses._pairs import vectors
from kd.registry import losses


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over [B, B] of Huber(d_s - d_t), d the distances in units of their mean, of vectors [B, D], B > 1."""
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def _distances(x: Tensor) -> Tensor:
    # not by way of |x|^2 + |y|^2 - 2xy, which cancels in single precision where samples are close
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-6)
    distances = distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    return distances * (len(x) * (len(x) - 1) / distances.sum())


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over [B, B, B] of Huber(psi_s - psi_t), psi_ijk the cosine at x_i between x_j and x_k."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _cosines(x: Tensor) -> Tensor:
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return directions @ directions.mT


@losses.register("rkd")
class RKD(nn.Module):
    """distance * Huber(d_s - d_t) + angle * Huber(psi_s - psi_t), d distances over their mean, psi cosines at x_i.

    Park et al. 2019, arXiv:1904.05068, section 3.2. Vectors [B, D] of any widths, B > 1; both parts are 0 for
    B = 2. Means over B^2 and B^3: the angles take memory for B^3 numbers. 25 and 50 are the benchmark's weights,
    for a term of weight 1; mmrazor normalises the vectors first, RepDistiller, mdistiller and torchdistill do not.
    """

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        check_not_negative(distance=distance, angle=angle)
        if distance == angle == 0:
            raise InputError("distance and angle must not both be 0")
        self.distance, self.angle = distance, angle

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = vectors("rkd", student, teacher, least=2)
        parts = ((self.distance, rkd_distance), (self.angle, rkd_angle))
        return torch.stack([weight * part(s, t) for weight, part in parts if weight]).sum()

    def extra_repr(self) -> str:
        return f"distance={self.distance:g}, angle={self.angle:g}"
