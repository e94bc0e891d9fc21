"""Residual networks for small images: resnet8 to resnet110, and the four times wider resnet8x4 and resnet32x4.

He, Zhang, Ren and Sun 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2: a 3x3
stem and three stages of n basic blocks on maps of full, half and quarter size; depth 6n + 2. State-dict keys are
those of RepDistiller and mdistiller.

Layers to tap: ``relu`` (the stem), ``layer1``, ``layer2``, ``layer3`` (after the last ReLU), ``layer1.2.relu:in``
(the sum before it, here of a stage of three blocks), ``fc:in`` (the pooled features). Every network of the zoo
names its own layers in ``aliases``, under the words that ``tap_names`` explains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd.registry import models


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the map's size at stride 1, without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def pooled(x: Tensor) -> Tensor:
    """The mean over all positions: [B, C, H, W] to [B, C]."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def init_convolutions(network: nn.Module) -> None:
    """He initialisation (arXiv:1502.01852): normal with variance 2 / (k * k * outputs), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def tap_names(
    stem: str, stages: Sequence[str], last: str, classifier: str, before: Sequence[str] = ()
) -> dict[str, str]:
    """Common names of a network's layers, each with its tap.

    ``stem``; ``stage1``, ``stage2``, ... after each stage; ``stage1.pre``, ... the same before the activation
    (``before``, if the network has one); ``last``, the map that is pooled; ``embedding``, the pooled
    vector; ``logit_map``, the classifier applied at every position of that map.
    """
    after = {f"stage{k}": layer for k, layer in enumerate(stages, 1)}
    sums = {f"stage{k}.pre": layer for k, layer in enumerate(before, 1)}
    ends = {"last": last, "embedding": f"{classifier}:in", "logit_map": f"{last}@{classifier}"}
    return {"stem": stem, **after, **sums, **ends}


class BasicBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))), with a 1x1 projection of x where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)  # Taps disables this where it would overwrite a tapped layer

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), self.relu.inplace)
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Images [B, channels, H, W] of any size from 4 pixels up to logits [B, classes].

    ``widths`` are the channels of the stem and of the three stages.
    """

    def __init__(self, depth: int, widths: Sequence[int], classes: int, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = conv3x3(channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(stem, stages[0], blocks, stride=1)
        self.layer2 = _stage(stages[0], stages[1], blocks, stride=2)
        self.layer3 = _stage(stages[1], stages[2], blocks, stride=2)
        self.fc = nn.Linear(stages[2], classes)
        init_convolutions(self)
        layers = ["layer1", "layer2", "layer3"]
        sums = [f"{layer}.{blocks - 1}.relu:in" for layer in layers]
        self.aliases = tap_names("relu", layers, last="layer3", classifier="fc", before=sums)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(pooled(x))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    following = [BasicBlock(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *following)


NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)


@models.register("resnet8")
def resnet8(classes: int, channels: int = 3) -> ResNet:
    """0.08 million parameters, 12.5 million MACs."""
    return ResNet(8, NARROW, classes, channels)


@models.register("resnet14")
def resnet14(classes: int, channels: int = 3) -> ResNet:
    """0.18 million parameters, 26.7 million MACs."""
    return ResNet(14, NARROW, classes, channels)


@models.register("resnet20")
def resnet20(classes: int, channels: int = 3) -> ResNet:
    """0.28 million parameters, 40.8 million MACs."""
    return ResNet(20, NARROW, classes, channels)


@models.register("resnet32")
def resnet32(classes: int, channels: int = 3) -> ResNet:
    """0.47 million parameters, 69.1 million MACs."""
    return ResNet(32, NARROW, classes, channels)


@models.register("resnet44")
def resnet44(classes: int, channels: int = 3) -> ResNet:
    """0.67 million parameters, 97.4 million MACs."""
    return ResNet(44, NARROW, classes, channels)


@models.register("resnet56")
def resnet56(classes: int, channels: int = 3) -> ResNet:
    """0.86 million parameters, 125.8 million MACs."""
    return ResNet(56, NARROW, classes, channels)


@models.register("resnet110")
def resnet110(classes: int, channels: int = 3) -> ResNet:
    """1.74 million parameters, 253.2 million MACs."""
    return ResNet(110, NARROW, classes, channels)


@models.register("resnet8x4")
def resnet8x4(classes: int, channels: int = 3) -> ResNet:
    """1.23 million parameters, 177.1 million MACs."""
    return ResNet(8, WIDE, classes, channels)


@models.register("resnet32x4")
def resnet32x4(classes: int, channels: int = 3) -> ResNet:
    """7.43 million parameters, 1083.0 million MACs."""
    return ResNet(32, WIDE, classes, channels)
