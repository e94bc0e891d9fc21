"""AB: activation boundaries (Heo et al. 2019, arXiv:1811.03233)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._checks import check_positive
from kd.losses._maps import LayerLoss, regressor
from kd.registry import losses


def ab(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """sum of max(m + s, 0)^2 where the teacher's pre-activation is <= 0 and max(m - s, 0)^2 where it is above."""
    return F.relu(margin + torch.where(teacher > 0, -student, student)).square().sum()


@losses.register("ab")
class AB(LayerLoss):
    """scale * 2^(i-n) * sum max(m -+ s, 0)^2 / B, + where the teacher is off, - where on; layers i = 1..n summed.

    Heo et al. 2019 (arXiv:1811.03233), on pre-activations (``stage2.pre``). Published as a first stage of 30
    epochs on its own, after which it stops, weight 1; ``scale`` 3/1000 is the authors'. A layer of the teacher's
    shape is compared directly, any other through a convolution with batch normalisation.
    """

    resizes = True
    vectors = True

    def __init__(self, margin: float = 1.0, scale: float = 0.003) -> None:
        super().__init__()
        check_positive(margin=margin, scale=scale)
        self.margin, self.scale = margin, scale

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        same = student.shape[1:] == teacher.shape[1:]
        return nn.Identity() if same else regressor(student, teacher, relu=False)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        depth = 2.0 ** (layer + 1 - len(self.connectors))
        return self.scale * depth * ab(student, teacher, self.margin) / len(teacher)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"
