"""ShuffleNets for small images: ShuffleV1 (three groups) and ShuffleV2 (width 1), with a 1x1 stem.

Zhang, Zhou, Lin and Sun 2017, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices"
(arXiv:1707.01083); Ma, Zhang, Zheng and Sun 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design" (arXiv:1807.11164). State-dict keys are those of RepDistiller and mdistiller.

Layers to tap: ``relu`` (the stem), ``layer1``, ``layer2``, ``layer3`` (after the last ReLU, in ShuffleV2 also after
the shuffle), ``layer1.3.relu:in`` (before it, unshuffled; here of a stage of four blocks), ``last`` in ShuffleV2 (the
map that is pooled), ``linear:in`` (the pooled features).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.models.resnet import pooled, tap_names
from kd.registry import models

LAYERS = ["layer1", "layer2", "layer3"]
DEPTHS = [4, 8, 4]
SUMS = [f"{layer}.{depth - 1}.relu:in" for layer, depth in zip(LAYERS, DEPTHS)]


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the groups' channels: the first of every group, then the second of every group, and so on."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def conv1x1(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)


def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    """A depthwise 3x3 convolution without bias."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class GroupedBlock(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; x is added, or, at stride 2, pooled and concatenated."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        computed = outputs - inputs if stride == 2 else outputs
        narrow = computed // 4
        self.stride, self.first_groups = stride, first_groups
        self.conv1 = conv1x1(inputs, narrow, first_groups)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = depthwise(narrow, stride)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = conv1x1(narrow, computed, groups)
        self.bn3 = nn.BatchNorm2d(computed)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return self.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return self.relu(out + x)


class ShuffleNetV1(nn.Module):
    """Images [B, channels, H, W] of any size to logits [B, classes]; up to 8 pixels the last map is 1 x 1."""

    def __init__(self, groups: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv1x1(channels, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        # the first convolution after the stem is not grouped, because the stem is so narrow
        self.layer1 = self._stage(24, 240, DEPTHS[0], groups, first_groups=1)
        self.layer2 = self._stage(240, 480, DEPTHS[1], groups, first_groups=groups)
        self.layer3 = self._stage(480, 960, DEPTHS[2], groups, first_groups=groups)
        self.linear = nn.Linear(960, classes)
        self.aliases = tap_names("relu", LAYERS, last="layer3", classifier="linear", before=SUMS)

    def _stage(self, inputs: int, outputs: int, depth: int, groups: int, first_groups: int) -> nn.Sequential:
        following = [GroupedBlock(outputs, outputs, 1, groups, groups) for _ in range(depth - 1)]
        return nn.Sequential(GroupedBlock(inputs, outputs, 2, groups, first_groups), *following)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(pooled(x))


class SplitBlock(nn.Module):
    """Half of the channels pass through, the other half go through 1x1, depthwise 3x3 and 1x1; then a shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        identity, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        # the identity half is already the output of a ReLU, so that another one does not change it
        return shuffle(self.relu(torch.cat([identity, out], 1)), 2)


class DownBlock(nn.Module):
    """Two branches of stride 2, each giving half of the outputs: depthwise and 1x1, beside 1x1, depthwise, 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = depthwise(inputs, stride=2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv1x1(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        one = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        other = F.relu(self.bn3(self.conv3(x)))
        other = self.bn5(self.conv5(self.bn4(self.conv4(other))))
        return shuffle(F.relu(torch.cat([one, other], 1)), 2)


class ShuffleNetV2(nn.Module):
    """Images [B, channels, H, W] of any size to logits [B, classes]; up to 8 pixels the last map is 1 x 1."""

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv1x1(channels, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(24, 116, DEPTHS[0])
        self.layer2 = self._stage(116, 232, DEPTHS[1])
        self.layer3 = self._stage(232, 464, DEPTHS[2])
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.last = nn.ReLU()
        self.linear = nn.Linear(1024, classes)
        self.aliases = tap_names("relu", LAYERS, last="last", classifier="linear", before=SUMS)

    def _stage(self, inputs: int, outputs: int, depth: int) -> nn.Sequential:
        return nn.Sequential(DownBlock(inputs, outputs), *(SplitBlock(outputs) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(pooled(self.last(self.bn2(self.conv2(x)))))


@models.register("ShuffleV1")
def ShuffleV1(classes: int, channels: int = 3) -> ShuffleNetV1:
    """0.95 million parameters, 38.7 million MACs."""
    return ShuffleNetV1(3, classes, channels)


@models.register("ShuffleV2")
def ShuffleV2(classes: int, channels: int = 3) -> ShuffleNetV2:
    """1.36 million parameters, 44.5 million MACs."""
    return ShuffleNetV2(classes, channels)
