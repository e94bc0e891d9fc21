"""VGG networks with batch norm for small images: vgg8, vgg11, vgg13, vgg16 and vgg19.

Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv:1409.1556):
five blocks of 3x3 convolutions, each followed by batch norm and ReLU; here with one linear layer on the pooled map in
place of three. State-dict keys are those of RepDistiller and mdistiller.

Layers to tap: ``block0`` (the stem) to ``block4`` (after the last ReLU, before pooling), ``block1.1`` or, in a block
of n convolutions, ``block1.{3n - 2}`` (the batch norm before that ReLU), ``classifier:in`` (the pooled features).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, fx, nn

from kd.models.resnet import init_convolutions, pooled, tap_names
from kd.registry import models


class VGG(nn.Module):
    """Images [B, channels, H, W] of any size from 8 pixels up to logits [B, classes].

    ``depths`` are the numbers of convolutions in the five blocks. The map is halved after each of the first three
    blocks, and from 64 pixels on after the fourth too.
    """

    def __init__(self, depths: Sequence[int], classes: int, channels: int = 3) -> None:
        super().__init__()
        self.block0 = _block(channels, 64, depths[0])
        self.block1 = _block(64, 128, depths[1])
        self.block2 = _block(128, 256, depths[2])
        self.block3 = _block(256, 512, depths[3])
        self.block4 = _block(512, 512, depths[4])
        self.classifier = nn.Linear(512, classes)
        init_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        blocks = ["block1", "block2", "block3", "block4"]
        norms = [f"{block}.{3 * depth - 2}" for block, depth in zip(blocks, depths[1:])]
        self.aliases = tap_names("block0", blocks, last="block4", classifier="classifier", before=norms)

    def forward(self, x: Tensor) -> Tensor:
        images = x
        x = self.block1(F.max_pool2d(self.block0(x), 2))
        x = self.block2(F.max_pool2d(x, 2))
        x = self.block3(F.max_pool2d(x, 2))
        x = self.block4(halved_if_large(x, images))
        return self.classifier(pooled(x))


@fx.wrap  # a condition that a tracer must not enter
def halved_if_large(x: Tensor, images: Tensor) -> Tensor:
    """The map, halved if the images have 64 pixels or more."""
    return F.max_pool2d(x, 2) if min(images.shape[-2:]) >= 64 else x


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in [inputs] + [outputs] * (depth - 1):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@models.register("vgg8")
def vgg8(classes: int, channels: int = 3) -> VGG:
    """3.97 million parameters, 96.2 million MACs."""
    return VGG((1, 1, 1, 1, 1), classes, channels)


@models.register("vgg11")
def vgg11(classes: int, channels: int = 3) -> VGG:
    """9.28 million parameters, 209.4 million MACs."""
    return VGG((1, 1, 2, 2, 2), classes, channels)


@models.register("vgg13")
def vgg13(classes: int, channels: int = 3) -> VGG:
    """9.46 million parameters, 284.9 million MACs."""
    return VGG((2, 2, 2, 2, 2), classes, channels)


@models.register("vgg16")
def vgg16(classes: int, channels: int = 3) -> VGG:
    """14.77 million parameters, 398.2 million MACs."""
    return VGG((2, 2, 3, 3, 3), classes, channels)


@models.register("vgg19")
def vgg19(classes: int, channels: int = 3) -> VGG:
    """20.09 million parameters, 511.4 million MACs."""
    return VGG((2, 2, 4, 4, 4), classes, channels)
