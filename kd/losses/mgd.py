"""MGD: masked generative distillation (Yang et al. 2022, arXiv:2205.01529)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_choice
from kd.losses._maps import LayerLoss, projection
from kd.registry import losses


class Generator(nn.Module):
    """Masks a map and generates the teacher's from the remainder: 3x3 convolution, ReLU, 3x3 convolution."""

    def __init__(self, student: Tensor, teacher: Tensor, ratio: float, mask: str) -> None:
        super().__init__()
        channels = teacher.shape[1]
        self.align = projection(student, teacher)
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.generate = nn.Sequential(first, nn.ReLU(), second)
        self.ratio, self.mask = ratio, mask

    def forward(self, x: Tensor) -> Tensor:
        x = self.align(x)
        if self.training:
            batch, channels, height, width = x.shape
            shape = (batch, channels, 1, 1) if self.mask == "channels" else (batch, 1, height, width)
            # always drawn in float32, so that a seed gives one mask for any dtype of x
            x = x * (torch.rand(shape, device=x.device, dtype=torch.float32) >= self.ratio)
        return self.generate(x)


@losses.register("mgd")
class MGD(LayerLoss):
    """sum (G(masked f_s) - f_t)^2 / B, G two 3x3 convolutions; summed over layers.

    Yang et al. 2022 (arXiv:2205.01529). Classification masks 15 % of the channels (weight 7e-5 on
    ImageNet, 1.2e-3 on CIFAR-100), dense tasks 65 % of the positions (``mask=positions``, weight 2e-5). In training
    mode a new mask is drawn at every call, from torch's generator. Larger maps are pooled.
    """

    MASKS = ("channels", "positions")

    def __init__(self, ratio: float = 0.15, mask: str = "channels") -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise InputError(f"ratio must lie in [0, 1), got {ratio}")
        check_choice("mask", mask, self.MASKS)
        self.ratio, self.mask = ratio, mask

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        return Generator(student, teacher, self.ratio, self.mask)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().sum() / len(teacher)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio:g}, mask={self.mask}"
