"""NST: neuron selectivity transfer (Huang and Wang 2017, arXiv:1707.01219)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import _same_size
from kd.losses._pairs import Layers, matched
from kd.registry import losses


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels of maps [B, C, H, W] by the kernel k(x, y) = <x, y>^2.

    The channels are vectors of unit length over positions; mean k(t, t) + mean k(s, s) - 2 mean k(s, t).
    """
    s, t = (F.normalize(maps.flatten(2), dim=2) for maps in _same_size(student, teacher))
    if s.shape[2] < max(s.shape[1], t.shape[1]):
        # the same number by the second moments of positions: fewer numbers here, and nothing cancels
        return (_moments(s) - _moments(t)).square().sum((1, 2)).mean()
    return _kernel_mean(t, t) + _kernel_mean(s, s) - 2 * _kernel_mean(s, t)


def _moments(channels: Tensor) -> Tensor:
    return channels.mT @ channels / channels.shape[1]


def _kernel_mean(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).square().mean()


@losses.register("nst")
class NST(nn.Module):
    """mean k(t,t) + mean k(s,s) - 2 mean k(s,t), k(x,y) = <x,y>^2 of channels of unit length, summed over layers.

    Maps [B, C, H, W] of any channels, the larger one pooled by its average; one layer or a list of them. Huang
    and Wang 2017, arXiv:1707.01219, with the polynomial kernel (d = 2, c = 0); weight 50. Takes memory for B C^2
    or B (HW)^2 numbers, whichever is smaller.
    """

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        return torch.stack([nst(s, t) for s, t in matched("nst", student, teacher, maps=True)]).sum()
