"""Wide residual networks: wrn_16_1, wrn_16_2, wrn_40_1 and wrn_40_2, named by depth and width factor.

Zagoruyko and Komodakis 2016, "Wide Residual Networks" (arXiv:1605.07146): pre-activation blocks, that is batch norm
and ReLU precede each convolution and nothing follows the sum; depth 6n + 4. State-dict keys are those of
RepDistiller and mdistiller.

Layers to tap: ``conv1`` (the stem), ``block1``, ``block2``, ``block3`` (sums before batch norm and ReLU), ``relu`` (the
map that is pooled), ``fc:in`` (the pooled features). The values before the ReLU that follows a stage are
the next batch norm's output, ``block2.layer.0.bn1``, ``block3.layer.0.bn1`` and ``bn1``: the network computes them
anyway, so tapping them does not change running statistics.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from kd.models.resnet import conv3x3, init_convolutions, pooled, tap_names
from kd.registry import models


class Block(nn.Module):
    """x + conv(ReLU(BN(conv(h)))) with h = ReLU(BN(x)); where the width changes, x is a 1x1 projection of h."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut: nn.Module | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.inplace = True  # Taps disables it where it would overwrite a tapped layer

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), self.inplace)
        out = self.conv2(F.relu(self.bn2(self.conv1(active)), self.inplace))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideResNet(nn.Module):
    """Images [B, channels, H, W] of any size from 4 pixels up to logits [B, classes]."""

    def __init__(self, depth: int, factor: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16 * factor, 32 * factor, 64 * factor]
        self.conv1 = conv3x3(channels, 16)
        self.block1 = _stage(16, widths[0], blocks, stride=1)
        self.block2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.block3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[2], classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)
        normalised = ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]
        stages = ["block1", "block2", "block3"]
        self.aliases = tap_names("conv1", stages, last="relu", classifier="fc", before=normalised)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(pooled(self.relu(self.bn1(x))))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    following = [Block(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(Block(inputs, outputs, stride), *following)))


@models.register("wrn_16_1")
def wrn_16_1(classes: int, channels: int = 3) -> WideResNet:
    """0.18 million parameters, 26.7 million MACs."""
    return WideResNet(16, 1, classes, channels)


@models.register("wrn_16_2")
def wrn_16_2(classes: int, channels: int = 3) -> WideResNet:
    """0.70 million parameters, 101.1 million MACs."""
    return WideResNet(16, 2, classes, channels)


@models.register("wrn_40_1")
def wrn_40_1(classes: int, channels: int = 3) -> WideResNet:
    """0.57 million parameters, 83.3 million MACs."""
    return WideResNet(40, 1, classes, channels)


@models.register("wrn_40_2")
def wrn_40_2(classes: int, channels: int = 3) -> WideResNet:
    """2.26 million parameters, 327.6 million MACs."""
    return WideResNet(40, 2, classes, channels)
