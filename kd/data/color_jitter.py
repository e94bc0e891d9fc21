"""Random brightness, contrast and saturation of a whole batch, in integer arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd.errors import InputError
from kd.rng import JITTER, below, hashed

ONE = 256


class Jitter:
    """Scales brightness, contrast and saturation of each image, in this order, by random factors.

    Args:
        strength: s; each factor is uniform in [1 - s, 1 + s], in steps of 1/256. Saturation applies to
            images with three channels.

    Raises:
        InputError: a strength out of range.
    """

    def __init__(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise InputError(f"jitter must lie in [0, 1], got {strength}")
        self.strength = strength
        self.most = round(strength * ONE)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
        """uint8 images [B, C, H, W] with changed brightness, contrast and saturation."""
        bits = hashed(seed, epoch, index, JITTER + torch.arange(3, device=index.device)[:, None])
        factors = (below(2 * self.most + 1, bits) + (ONE - self.most)).int()[..., None, None, None]
        pixels = _blend(images.int(), 0, factors[0])
        pixels = _blend(pixels, _mean(_grey(pixels)), factors[1])
        if images.shape[1] == 3:
            pixels = _blend(pixels, _grey(pixels), factors[2])
        return pixels.to(torch.uint8)

    def describe(self) -> dict[str, Any]:
        """Everything that determines the colours."""
        return {"strength": self.strength}


def _blend(pixels: Tensor, towards: Tensor | int, factor: Tensor) -> Tensor:
    return ((pixels * factor + towards * (ONE - factor) + ONE // 2) >> 8).clamp(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    """Luma [B, 1, H, W] of ITU-R 601 for three channels, as integers; else the channels' mean."""
    if pixels.shape[1] != 3:
        return torch.div(pixels.sum(1, keepdim=True), pixels.shape[1], rounding_mode="floor").int()
    red, green, blue = pixels.split(1, 1)
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def _mean(grey: Tensor) -> Tensor:
    count = grey[0].numel()
    return torch.div(grey.sum((1, 2, 3), keepdim=True) + count // 2, count, rounding_mode="floor").int()
