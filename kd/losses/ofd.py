"""OFD: overhaul of feature distillation (Heo et al. 2019, arXiv:1904.01866)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._batch_norms import norm_named, norms_of_stages
from kd.losses._maps import LayerLoss, Layers, conv_bn
from kd.registry import losses


def ofd_margin(scale: Tensor, shift: Tensor) -> Tensor:
    """E[x | x < 0] per channel for x ~ N(shift, scale^2): a batch norm's output where its ReLU is off.

    -3 |scale| where x < 0 has a probability of 0.001 or less.
    """
    spread = scale.abs()
    ratio = shift / spread
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(below > 0.001, shift - spread * density / below, -3 * spread)


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """sum (f_s - t)^2 where f_s > t or t > 0, t = max(f_t, margin), of pre-activations; ``margin`` is [C]."""
    target = torch.maximum(teacher, margin.view(-1, 1, 1))
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0.0).square().sum()


@losses.register("ofd")
class OFD(LayerLoss):
    """2^(i-n) * sum (BN(conv(s)) - t)^2 / B where it is above t or t > 0, t = max(f_t, m); layers i = 1..n summed.

    Heo et al. 2019 (arXiv:1904.01866), section 3, on pre-activations (``stage2.pre``); weight 1e-3 on CIFAR-100,
    1e-4 on ImageNet. m is the mean of the teacher's negative responses, from the batch norms before the tapped
    ReLUs: ``batch_norms`` names them, else each stage's last one is found. Larger maps are pooled. The authors run
    the teacher with batch statistics, kd with its trained ones.
    """

    def __init__(self, batch_norms: Sequence[str] | None = None) -> None:
        super().__init__()
        self.batch_norms = None if batch_norms is None else list(batch_norms)
        self.margins: list[Tensor] = []

    def attach(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Reads the teacher's margins."""
        if teacher is None:
            raise InputError("OFD reads the teacher's batch norms, and there is no single teacher network")
        named = self.batch_norms
        norms = norms_of_stages(teacher) if named is None else [norm_named(teacher, name) for name in named]
        self.margins = [ofd_margin(norm.weight.detach(), norm.bias.detach()) for norm in norms]

    def build(self, student: Layers, teacher: Layers) -> None:
        channels = [t.shape[1] for _, t in self.pairs(student, teacher)]
        first = self._first_margin(channels)
        super().build(student, teacher)
        for layer, (_, t) in enumerate(self.pairs(student, teacher)):
            self.register_buffer(f"margin{layer}", self.margins[first + layer].to(t.device, t.dtype, copy=True))

    def _first_margin(self, channels: list[int]) -> int:
        """Where in ``margins`` those of the tapped layers begin: consecutive stages of the same channels."""
        if not self.margins:
            raise InputError("OFD: call attach(student, teacher) with the networks before build")
        have = [len(margin) for margin in self.margins]
        starts = range(len(have) - len(channels) + 1)
        fits = [start for start in starts if have[start : start + len(channels)] == channels]
        if len(fits) != 1 or (self.batch_norms is not None and have != channels):
            wanted = f"the layers have {channels} channels, the batch norms {have}"
            raise InputError(f"OFD: set batch_norms to the teacher's batch norms before these ReLUs; {wanted}")
        return fits[0]

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        conv, norm = conv_bn(student.shape[1], teacher.shape[1], relu=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        return nn.Sequential(conv, norm)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        depth = 2.0 ** (layer + 1 - len(self.connectors))
        return depth * ofd(student, teacher, self.get_buffer(f"margin{layer}")) / len(teacher)

    def extra_repr(self) -> str:
        return "" if self.batch_norms is None else f"batch_norms={self.batch_norms}"
