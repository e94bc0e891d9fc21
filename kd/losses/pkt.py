"""PKT: probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv:1803.10837)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.losses._pairs import vectors
from kd.registry import losses


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """mean over [B, B] of P_t log((P_t + eps) / (P_s + eps)) of vectors [B, D].

    P is the cosine kernel (cos + 1) / 2 between samples, its rows summing to 1, diagonal included.
    """
    p, q = _affinities(teacher, eps), _affinities(student, eps)
    return (p * torch.log1p((p - q) / (q + eps))).mean()


def _affinities(x: Tensor, eps: float) -> Tensor:
    unit = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


@losses.register("pkt")
class PKT(nn.Module):
    """mean over B^2 of P_t log(P_t / P_s), P_ij the cosine similarity of samples, (cos + 1) / 2 with rows summing to 1.

    Vectors [B, D] of any widths. Passalis and Tefas 2018, arXiv:1803.10837, section 3, in the authors' code;
    weight 30000 because of the mean over B^2.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt(*vectors("pkt", student, teacher))
