"""What losses on feature maps [B, C, H, W] share: layers side by side, one size for both, and connectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._pairs import Layers, matched


def as_map(name: str, tensor: Tensor, vectors: bool = False) -> Tensor:
    """Returns a map unchanged; with ``vectors`` also [B, C], as a map of one position."""
    if vectors and tensor.ndim == 2:
        return tensor[:, :, None, None]
    if tensor.ndim != 4:
        kinds = "feature maps [B, C, H, W]" + (" or vectors [B, C]" if vectors else "")
        raise InputError(f"{name} takes {kinds}, not token sequences; got a layer of shape {list(tensor.shape)}")
    return tensor


def pairs(name: str, student: Layers, teacher: Layers, vectors: bool = False) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's layers side by side, as maps.

    Raises:
        InputError: unequally many layers, another batch, or layers that are not maps.
    """
    mine, theirs = ([side] if isinstance(side, Tensor) else list(side) for side in (student, teacher))
    if len(mine) != len(theirs):
        raise InputError(f"{name} compares layers one to one; got {len(mine)} and {len(theirs)}")
    if any(s.shape[0] != t.shape[0] for s, t in zip(mine, theirs)):
        raise InputError(f"{name} needs the same batch from student and teacher")
    return [(as_map(name, s, vectors), as_map(name, t, vectors)) for s, t in zip(mine, theirs)]


def pool(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive average pooling to ``size``."""
    height, width = tensor.shape[-2:]
    if (height, width) == tuple(size):
        return tensor
    if height % size[0] == 0 and width % size[1] == 0:  # the same numbers, with a deterministic gradient on CUDA
        return F.avg_pool2d(tensor, (height // size[0], width // size[1]))
    return F.adaptive_avg_pool2d(tensor, (size[0], size[1]))


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in the smaller one's height and width."""
    size = [min(sides) for sides in zip(student.shape[-2:], teacher.shape[-2:])]
    return pool(student, size), pool(teacher, size)


def over_positions(name: str, features: Tensor) -> None:
    """Refuses a map of one position, where a distribution over positions is constant."""
    if features.shape[-2:].numel() == 1:
        raise InputError(f"{name} compares positions; a map of one position has nothing to transfer")


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that refuses a single value per channel with kd's own error."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            raise InputError("batch normalisation in training needs a batch of at least 2 for a map of one position")
        return super().forward(x)


def conv_bn(inputs: int, outputs: int, kernel: int = 1, relu: bool = True) -> list[nn.Module]:
    """Convolution without bias that keeps the map's size, batch normalisation and optionally ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [conv, BatchNorm(outputs), *([nn.ReLU()] if relu else [])]


def projection(student: Tensor, teacher: Tensor) -> nn.Module:
    """A 1x1 convolution to the teacher's channels, where the channels differ."""
    inputs, outputs = student.shape[1], teacher.shape[1]
    return nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)


class LayerLoss(nn.Module, ABC):
    """Compares layers one to one, each student layer through its own connector, created by ``build``.

    A subclass defines how to ``connect`` two layers and how to ``compare`` them. Maps of different size are first
    pooled to the smaller one, unless the subclass resizes them itself (``resizes``).
    """

    resizes = False
    vectors = False

    def __init__(self) -> None:
        super().__init__()
        self.connectors = nn.ModuleList()

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        """The connector for two example maps."""
        return projection(student, teacher)

    @abstractmethod
    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar for layer number ``layer``; ``student`` is the connector's output."""

    def pairs(self, student: Layers, teacher: Layers) -> list[tuple[Tensor, Tensor]]:
        """The layers side by side, in the size that the connectors expect."""
        both = pairs(type(self).__name__, student, teacher, self.vectors)
        return both if self.resizes else [same_size(s, t) for s, t in both]

    def build(self, student: Layers, teacher: Layers) -> None:
        both = self.pairs(student, teacher)
        self.connectors = nn.ModuleList(self.connect(s, t).to(s.device, s.dtype) for s, t in both)

    def parts(self, student: Layers, teacher: Layers) -> list[Tensor]:
        """The scalars layer by layer, whose sum is the loss."""
        both = self.pairs(student, teacher)
        if len(self.connectors) != len(both):
            raise InputError(f"{type(self).__name__}: call build(student, teacher) with examples of these layers first")
        return [
            self.compare(layer, connector(s), t) for layer, (connector, (s, t)) in enumerate(zip(self.connectors, both))
        ]

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        return torch.stack(self.parts(student, teacher)).sum()


def regressor(student: Tensor, teacher: Tensor, relu: bool = True) -> nn.Sequential:
    """Convolution, batch normalisation and ReLU from the student's map shape to the teacher's.

    3x3 with stride 2 halves the map, transposed 4x4 with stride 2 doubles it, and a kernel of one more than
    the difference in size brings a map of the same or a larger size down without padding.
    """
    inputs, (outputs, *size) = student.shape[1], teacher.shape[1:]
    have = list(student.shape[2:])
    conv: nn.Module
    if have == [2 * side for side in size]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif [2 * side for side in have] == size:
        conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif have[0] >= size[0] and have[1] >= size[1]:
        conv = nn.Conv2d(inputs, outputs, (1 + have[0] - size[0], 1 + have[1] - size[1]))
    else:
        raise InputError(f"a student map of size {have} must be as large as the teacher's {size}, larger or half")
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=BatchNorm(outputs))
    if relu:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


Pool = Callable[[Tensor, tuple[int, int]], Tensor]


def _same_size(a: Tensor, b: Tensor, pool: Pool = F.adaptive_avg_pool2d) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of their sizes."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a, b = (x if x.shape[2:] == size else pool(x, size) for x in (a, b))
    return a, b


def _chain(name: str, student: Layers, teacher: Layers) -> list[tuple[Tensor, Tensor]]:
    """The layers of a method that relates consecutive layers: at least two."""
    layers = matched(name, student, teacher, maps=True)
    if len(layers) < 2:
        raise InputError(f"{name} relates consecutive layers and needs a list of at least two, got {len(layers)}")
    return layers


class Chained(nn.Module):
    """Relates consecutive layers. The methods are defined for equal channels; where they differ, the student's map
    passes a trained 1x1 convolution first, created by ``build``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connectors = nn.ModuleList()

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        layers = _chain(type(self).__name__, student, teacher)
        self.connectors = nn.ModuleList(projection(s, t) for s, t in layers)
        self.to(layers[0][0].device, layers[0][0].dtype)

    def layers(self, student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The layers side by side, with equal channels."""
        name = type(self).__name__
        layers = _chain(name, student, teacher)
        if len(self.connectors) == len(layers):
            layers = [(connect(s), t) for connect, (s, t) in zip(self.connectors, layers)]
        for s, t in layers:
            if s.shape[1] != t.shape[1]:
                channels = f"{s.shape[1]} and {t.shape[1]}"
                raise InputError(f"{name} needs equal channels, got {channels}: call build with example maps first")
        return layers
