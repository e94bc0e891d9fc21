"""FitNets: features through a regressor (Romero et al. 2015, arXiv:1412.6550)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._maps import LayerLoss, regressor
from kd.registry import losses


@losses.register("fitnets")
class FitNets(LayerLoss):
    """mean (r(f_s) - f_t)^2 over all elements, r = ReLU(BN(conv)); summed over layers.

    Romero et al. 2015 (arXiv:1412.6550), eq. 3, where it is half the sum and trains the lower half of the student
    in a stage of its own; the CRD benchmark uses the mean, weight 100 on the second stage, beside cross-entropy.
    ``regressor=false`` compares tensors of equal shape as they are. Vectors [B, C] count as maps of one position.
    """

    resizes = True
    vectors = True

    def __init__(self, regressor: bool = True) -> None:
        super().__init__()
        self.regressor = regressor

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        if self.regressor:
            return regressor(student, teacher)
        if student.shape != teacher.shape:
            shapes = f"{list(student.shape[1:])} and {list(teacher.shape[1:])}"
            raise InputError(f"FitNets without a regressor needs equal shapes, got {shapes}")
        return nn.Identity()

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)

    def extra_repr(self) -> str:
        return "" if self.regressor else "regressor=False"
