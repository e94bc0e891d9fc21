"""MobileNetV2 at half width, with strides for small images.

Sandler, Howard, Zhu, Zhmoginov and Chen 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(arXiv:1801.04381), table 2 at width 0.5, with stride 1 in the second group of blocks and ReLU in place of ReLU6.
State-dict keys are those of RepDistiller (``mobile_half``) and mdistiller.

Layers to tap: ``conv1`` (the stem), ``blocks.1``, ``blocks.2``, ``blocks.4``, ``blocks.6`` (linear bottlenecks: there
is no activation after them, so nothing to tap before it either), ``conv2`` (the map that is pooled, after its ReLU),
``classifier.0:in`` (the pooled features).
"""

from __future__ import annotations

from torch import Tensor, nn

from kd.models.resnet import init_convolutions, pooled, tap_names
from kd.registry import models

# expansion, channels at full width, blocks, stride of the first
GROUPS = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by a 3x3 one, narrow by a 1x1 one; add x where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU()),
            *(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNet(nn.Module):
    """Images [B, channels, H, W] of any size to logits [B, classes]; up to 16 pixels the last map is 1 x 1.

    ``width`` scales the channels of the stem and of the blocks; the last convolution keeps its 1280.
    """

    def __init__(self, width: float, classes: int, channels: int = 3) -> None:
        super().__init__()
        inputs, outputs = int(32 * width), 1280
        stem = nn.Conv2d(channels, inputs, 3, stride=2, padding=1, bias=False)
        self.conv1 = nn.Sequential(stem, nn.BatchNorm2d(inputs), nn.ReLU())
        self.blocks = nn.Sequential()
        for expansion, full, depth, stride in GROUPS:
            self.blocks.append(_group(inputs, int(full * width), depth, stride, expansion))
            inputs = int(full * width)
        self.conv2 = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        linear = nn.Linear(outputs, classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        stages = ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]
        self.aliases = tap_names("conv1", stages, last="conv2", classifier="classifier.0")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pooled(self.conv2(self.blocks(self.conv1(x)))))


def _group(inputs: int, outputs: int, depth: int, stride: int, expansion: int) -> nn.Sequential:
    following = [InvertedResidual(outputs, outputs, 1, expansion) for _ in range(depth - 1)]
    return nn.Sequential(InvertedResidual(inputs, outputs, stride, expansion), *following)


@models.register("MobileNetV2")
def MobileNetV2(classes: int, channels: int = 3) -> MobileNet:
    """0.81 million parameters, 6.5 million MACs."""
    return MobileNet(0.5, classes, channels)
