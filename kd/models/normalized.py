"""Pixels in, logits out: each network includes the normalisation that it expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.models.outputs import logits_of


class InputSpec(NamedTuple):
    """What pre-trained weights expect: mean and std per channel on the [0, 1] scale, height and width."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: int | None = None


def unwrap(network: nn.Module) -> nn.Module:
    """The network without the normalisation in front of it."""
    return network.net if isinstance(network, Normalized) else network


class Normalized(nn.Module):
    """The logits in ``net((images - mean) / std)`` for images as uint8 or as float in [0, 1], shape [B, C, H, W].

    Mean and std are given per channel on the [0, 1] scale; with ``size``, images of another size are resized to it,
    bilinearly and without aliasing. None of them is part of the state dict, so that the weights are the network's
    own. ``output`` selects the logits where the network returns more: see :func:`kd.models.outputs.logits_of`.
    """

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise InputError(f"mean and std need one number per channel, std above 0; got {mean} and {std}")
        if not all(0 <= m <= 1 for m in mean) or not all(s <= 1 for s in std):
            raise InputError(
                f"mean and std are those of pixels in [0, 1]; got {list(mean)} and {list(std)}: divide what is in "
                "0..255 by 255"
            )
        if size is not None and size < 1:
            raise InputError(f"size must be at least 1 pixel, got {size}")
        if output is not None and (isinstance(output, bool) or not isinstance(output, (str, int)) or output == ""):
            raise InputError(f"output={output} must be a key, an attribute or a position in what the network returns")
        self.net, self.size, self.output = net, size, output
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)
        self.trained: tuple[str, ...] | None = None
        self.classes: tuple[str, ...] | None = None  # names of the classes, if the run folder has them

    def freeze(self, but: Sequence[str]) -> None:
        """Freezes ``net`` except the layers ``but``: batch norms and dropout stay in eval mode."""
        self.trained = tuple(but)
        self.net.requires_grad_(False)
        for name in but:
            self.net.get_submodule(name).requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Normalized:
        super().train(mode)
        if self.trained is not None:
            self.net.eval()
            for name in self.trained:
                self.net.get_submodule(name).train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.net(self.pixels(images)), self.output)

    def pixels(self, images: Tensor) -> Tensor:
        """The input of ``net`` for images."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, [self.size, self.size], mode="bilinear", antialias=True)
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}, size={self.size}"
