"""VID: variational information distillation (Ahn et al. 2019, arXiv:1904.05835)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._maps import LayerLoss, Layers
from kd.registry import losses


def vid(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """mean ((mu - f_t)^2 / var + log var) / 2, var [C]: -log N(f_t; mu, var) without its constant."""
    variance = variance.view(-1, 1, 1)
    return (((mean - teacher).square() / variance + variance.log()) / 2).mean()


@losses.register("vid")
class VID(LayerLoss):
    """mean ((mu(f_s) - f_t)^2 / var + log var) / 2, mu three 1x1 convolutions, var learned per channel; layers summed.

    Ahn et al. 2019 (arXiv:1904.05835): a bound on the mutual information; weight 1. The mean is taken
    over all elements, var = log(1 + e^a) + eps starts at ``init_variance``, and the hidden layers have ``hidden``
    channels, by default the teacher's. Larger maps are pooled first.
    """

    vectors = True

    def __init__(self, init_variance: float = 5.0, eps: float = 1e-5, hidden: int | None = None) -> None:
        super().__init__()
        check_positive(init_variance=init_variance, eps=eps)
        if init_variance <= eps:
            raise InputError(f"init_variance must be above eps, got {init_variance} and {eps}")
        if hidden is not None and hidden < 1:
            raise InputError(f"hidden must be at least 1, got {hidden}")
        self.init_variance, self.eps, self.hidden = init_variance, eps, hidden
        self.scales = nn.ParameterList()

    def build(self, student: Layers, teacher: Layers) -> None:
        super().build(student, teacher)
        start = math.log(math.expm1(self.init_variance - self.eps))
        both = self.pairs(student, teacher)
        self.scales = nn.ParameterList(torch.full_like(t[0, :, 0, 0], start) for _, t in both)

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        inputs, outputs = student.shape[1], teacher.shape[1]
        hidden = self.hidden or outputs
        widths = ((inputs, hidden), (hidden, hidden), (hidden, outputs))
        first, second, last = (nn.Conv2d(i, o, 1, bias=False) for i, o in widths)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return vid(student, teacher, F.softplus(self.scales[layer]) + self.eps)

    def extra_repr(self) -> str:
        return f"init_variance={self.init_variance:g}" + (f", hidden={self.hidden}" if self.hidden else "")
