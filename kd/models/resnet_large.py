"""ResNet18, ResNet34 and ResNet50: the ImageNet networks, with a stem that keeps a small image's size.

He, Zhang, Ren and Sun 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), table 1: four stages
of basic blocks or of bottlenecks, after a 3x3 stem with neither stride nor pooling. State-dict keys are those of
RepDistiller and mdistiller.

Layers to tap: ``relu`` (the stem), ``layer1`` to ``layer4`` (after the last ReLU), ``layer4.1.relu:in`` (the sum
before it, here of a stage of two blocks), ``linear:in`` (the pooled features).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd.models.resnet import conv3x3, init_convolutions, pooled, tap_names
from kd.registry import models


class Basic(nn.Module):
    """ReLU(shortcut(x) + two 3x3 convolutions of x), each convolution with BN, ReLU in between."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), self.relu.inplace)
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """ReLU(shortcut(x) + a 3x3 convolution between 1x1 ones that narrow x and widen it to ``4 * width``)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), self.relu.inplace)
        out = F.relu(self.bn2(self.conv2(out)), self.relu.inplace)
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


class LargeResNet(nn.Module):
    """Images [B, channels, H, W] of any size from 8 pixels up to logits [B, classes].

    ``depths`` are the numbers of blocks in the four stages, whose widths are 64, 128, 256 and 512.
    """

    def __init__(
        self, block: type[Basic] | type[Bottleneck], depths: Sequence[int], classes: int, channels: int = 3
    ) -> None:
        super().__init__()
        wide = block.expansion
        self.conv1 = conv3x3(channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * wide, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * wide, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * wide, 512, depths[3], stride=2)
        self.linear = nn.Linear(512 * wide, classes)
        init_convolutions(self)
        layers = ["layer1", "layer2", "layer3", "layer4"]
        sums = [f"{layer}.{depth - 1}.relu:in" for layer, depth in zip(layers, depths)]
        self.aliases = tap_names("relu", layers, last="layer4", classifier="linear", before=sums)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(pooled(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(block: type[Basic] | type[Bottleneck], inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    following = [block(width * block.expansion, width) for _ in range(depth - 1)]
    return nn.Sequential(block(inputs, width, stride), *following)


@models.register("ResNet18")
def ResNet18(classes: int, channels: int = 3) -> LargeResNet:
    """11.22 million parameters, 555.5 million MACs."""
    return LargeResNet(Basic, (2, 2, 2, 2), classes, channels)


@models.register("ResNet34")
def ResNet34(classes: int, channels: int = 3) -> LargeResNet:
    """21.33 million parameters, 1159.4 million MACs."""
    return LargeResNet(Basic, (3, 4, 6, 3), classes, channels)


@models.register("ResNet50")
def ResNet50(classes: int, channels: int = 3) -> LargeResNet:
    """23.71 million parameters, 1298.0 million MACs."""
    return LargeResNet(Bottleneck, (3, 4, 6, 3), classes, channels)
