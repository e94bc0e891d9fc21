"""FSP: flow between consecutive layers (Yim et al. 2017, CVPR)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses._checks import VARIANTS, check_choice
from kd.losses._maps import Chained, _same_size
from kd.registry import losses


def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor], variant: str = "code") -> Tensor:
    """(G_s - G_t)^2 summed over consecutive layers [B, C, H, W], G_dc = mean over positions of above_d below_c.

    ``code`` pools the larger map by its average and takes the mean over B, d and c; ``paper`` pools by the
    maximum, sums over d and c and takes the mean over B.
    """
    parts = [(_flow(*s, variant) - _flow(*t, variant)).square() for s, t in zip(pairwise(student), pairwise(teacher))]
    return torch.stack([part.sum((1, 2)).mean() if variant == "paper" else part.mean() for part in parts]).sum()


def _flow(below: Tensor, above: Tensor, variant: str) -> Tensor:
    below, above = _same_size(below, above, F.adaptive_max_pool2d if variant == "paper" else F.adaptive_avg_pool2d)
    return above.flatten(2) @ below.flatten(2).mT / below[0, 0].numel()


@losses.register("fsp")
class FSP(Chained):
    """mean (G_s - G_t)^2 of the flow G = <above_d, below_c> / HW between consecutive layers, summed over pairs.

    A list of at least two maps [B, C, H, W] of each side, of equal channels in the paper (see :class:`Chained`).
    Yim et al. 2017 (CVPR), eq. 1 and 2, in which it is a stage of its own before training. ``variant=code`` is
    RepDistiller's (average pooling, means), weight 50; ``paper`` pools by the maximum and takes the squared
    Frobenius norm.
    """

    def __init__(self, variant: str = "code") -> None:
        super().__init__()
        check_choice("variant", variant, VARIANTS)
        self.variant = variant

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        s, t = zip(*self.layers(student, teacher))
        return fsp(s, t, self.variant)

    def extra_repr(self) -> str:
        return f"variant={self.variant}"
