"""SP: similarity-preserving distillation (Tung and Mori 2019, arXiv:1907.09682)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._pairs import Layers, matched
from kd.registry import losses


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """sum (G_t - G_s)^2 / B^2 with G = F F' of features F [B, ...], its rows of unit length."""
    return F.mse_loss(_similarity(student), _similarity(teacher))


def _similarity(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


@losses.register("sp")
class SP(nn.Module):
    """sum (G_t - G_s)^2 / B^2, G = F F' with rows of unit length, summed over layers.

    Features [B, ...] of any widths, one layer or a list of them. Tung and Mori 2019, arXiv:1907.09682,
    section 3; weight 3000 on the last map. torchdistill's port divides the rows by their L1 norm, which is not
    the paper's.
    """

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        return torch.stack([sp(s, t) for s, t in matched("sp", student, teacher)]).sum()
