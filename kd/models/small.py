"""Two small networks for quick experiments: a multi-layer perceptron and a plain convolutional network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.registry import models


@models.register("mlp")
class MLP(nn.Module):
    """Pixels - hidden layers with ReLU - logits; ``shape`` is the images' [C, H, W].

    Layers to tap: ``hidden`` (the last hidden layer's output), ``fc:in``.
    """

    def __init__(self, classes: int, shape: Sequence[int] = (3, 32, 32), width: int = 128, depth: int = 2) -> None:
        super().__init__()
        _check(width=width, depth=depth)
        layers: list[nn.Module] = [nn.Linear(math.prod(shape), width), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x.flatten(1)))


@models.register("cnn")
class CNN(nn.Module):
    """Two 3x3 convolutions with batch norm, ReLU and 2x2 pooling, then a linear classifier.

    Layers to tap: ``layer1``, ``layer2``, ``fc:in`` (the pooled features), or by the zoo's names ``stage1``,
    ``stage2``, ``last``, ``embedding``, ``logit_map``.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        _check(width=width)
        self.aliases = {"stage1": "layer1", "stage2": "layer2", "last": "layer2", "logit_map": "layer2@fc"}
        self.layer1 = _block(channels, width)
        self.layer2 = _block(width, 2 * width)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(F.max_pool2d(self.layer1(x), 2))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, got {size}")


def _block(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
