"""ReviewKD: lower levels reviewed by higher ones (Chen et al. 2021, arXiv:2104.09044)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._maps import Layers, conv_bn, pairs, pool
from kd.registry import losses


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context for one layer: weighted mean of the errors of maps pooled to 4x4, 2x2 and 1x1.

    The unpooled error has weight 1, each coarser one half of the one before; sizes that do not shrink the map are
    left out.
    """
    sizes = [size for size in (4, 2, 1) if size < min(student.shape[-2:])]
    errors = [F.mse_loss(student, teacher)]
    errors += [F.mse_loss(pool(student, (size, size)), pool(teacher, (size, size))) for size in sizes]
    weights = [2.0**-level for level in range(len(errors))]
    return torch.stack([w * e for w, e in zip(weights, errors)]).sum() / sum(weights)


class Fusion(nn.Module):
    """Attention-based fusion of one layer with the output of the deeper layers.

    x = BN(conv1x1(layer)) becomes z0 * x + z1 * residual with maps z = sigmoid(conv1x1([x, residual])); the output is
    BN(conv3x3(x)) in the teacher's shape, and x itself is passed on.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*conv_bn(inputs, middle, relu=False))
        self.expand = nn.Sequential(*conv_bn(middle, outputs, kernel=3, relu=False))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        for conv in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]

    def forward(self, layer: Tensor, residual: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        x = self.reduce(layer)
        if self.attention is not None and residual is not None:
            residual = _nearest(residual, x.shape[-2:])
            mine, deeper = self.attention(torch.cat([x, residual], 1)).sigmoid().split(1, dim=1)
            x = mine * x + deeper * residual
        x = _nearest(x, size)
        return self.expand(x), x


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, list(size), mode="nearest")


@losses.register("reviewkd")
class ReviewKD(nn.Module):
    """HCL(fusion(f_s), f_t): errors of maps pooled to 4, 2 and 1, weighted 1, 1/2, 1/4, 1/8; summed over layers.

    Chen et al. 2021 (arXiv:2104.09044), section 3; weight 5 for most CIFAR-100 pairs (also 8, 0.6 and 1),
    rising over 20 epochs, 1 on ImageNet. Layers are given shallow to deep, usually with the pooled vector [B, C]
    last; the teacher's maps before their ReLU. The fusion has min(``max_middle``, deepest student layer's) channels.
    """

    def __init__(self, max_middle: int = 512) -> None:
        super().__init__()
        if max_middle < 1:
            raise InputError(f"max_middle must be at least 1, got {max_middle}")
        self.max_middle = max_middle
        self.fusions = nn.ModuleList()

    def build(self, student: Layers, teacher: Layers) -> None:
        both = pairs("ReviewKD", student, teacher, vectors=True)
        deepest, _ = both[-1]
        middle = min(self.max_middle, deepest.shape[1])
        last = len(both) - 1
        fusions = (Fusion(s.shape[1], middle, t.shape[1], fuses=i < last) for i, (s, t) in enumerate(both))
        self.fusions = nn.ModuleList(fusions).to(deepest.device, deepest.dtype)

    def fuse(self, student: Layers, teacher: Layers) -> list[Tensor]:
        """The student's fused maps in the teacher's shapes, shallow to deep."""
        both = pairs("ReviewKD", student, teacher, vectors=True)
        if len(self.fusions) != len(both):
            raise InputError("ReviewKD: call build(student, teacher) with examples of these layers first")
        fused: list[Tensor] = []
        residual: Tensor | None = None
        for fusion, (s, t) in zip(reversed(self.fusions), reversed(both)):
            output, residual = fusion(s, residual, t.shape[-2:])
            fused.insert(0, output)
        return fused

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        both = pairs("ReviewKD", self.fuse(student, teacher), teacher, vectors=True)
        return torch.stack([hcl(s, t) for s, t in both]).sum()

    def extra_repr(self) -> str:
        return f"max_middle={self.max_middle}" if self.max_middle != 512 else ""
