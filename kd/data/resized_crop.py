"""The random resized crop of a whole batch, in integer arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd.data.erasing import crop_boxes
from kd.data.per_device import PerDevice
from kd.rng import CROP, below, hashed


class ResizedCrop:
    """A box of each image, enlarged to the image's size (Szegedy et al. 2014, arXiv:1409.4842).

    Args:
        shape: [C, H, W] of the images.
        scale: the minimum and maximum fraction of the image area in the box; height / width within 3/4 and 4/3.

    Raises:
        InputError: fractions out of range, or no box fits.
    """

    def __init__(self, shape: Sequence[int], scale: Sequence[float]) -> None:
        self.sizes = PerDevice(torch.tensor(crop_boxes(shape, scale)))
        self.shape, self.scale = tuple(shape), list(scale)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
        """The boxes of uint8 images [B, C, H, W], enlarged to the images' shape."""
        (sizes,) = self.sizes.on(images.device)
        bits = hashed(seed, epoch, index, CROP + torch.arange(3, device=index.device)[:, None])
        height, width = sizes[below(len(sizes), bits[0])].unbind(1)
        y, x = below(self.shape[1] - height + 1, bits[1]), below(self.shape[2] - width + 1, bits[2])
        return enlarged(images, y, x, height, width)

    def describe(self) -> dict[str, Any]:
        """Everything that determines the boxes."""
        digest = hashlib.sha256(self.sizes.host[0].numpy().tobytes()).hexdigest()[:16]
        return {"scale": self.scale, "sizes": digest}


def enlarged(images: Tensor, y: Tensor, x: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """The boxes [B] of uint8 images [B, C, H, W], each enlarged to H x W by bilinear interpolation.

    Pixel centres lie at halves, as in torchvision; weights are exact fractions, and the result is rounded once.
    """
    whole = 4 * images.shape[2] * images.shape[3]
    fits = 255 * whole + whole // 2 < 2**31  # in 32-bit integers, which are faster
    rows = _line(images.int() if fits else images.long(), 2, y, height)
    both = _line(rows, 3, x, width)
    return torch.div(both + whole // 2, whole, rounding_mode="floor").to(torch.uint8)


def _line(images: Tensor, dim: int, start: Tensor, length: Tensor) -> Tensor:
    """Integers [B, C, H, W], interpolated along one dimension and multiplied by twice its size."""
    size = images.shape[dim]
    position = torch.arange(size, device=images.device)
    length = length[:, None]
    source = ((2 * position + 1) * length - size).clamp(min=0)  # in units of 1 / (2 size) of a pixel
    first = source // (2 * size)
    weight = source - first * 2 * size
    second = torch.minimum(first + 1, length - 1)
    view = (-1, 1, size, 1) if dim == 2 else (-1, 1, 1, size)

    def take(offset: Tensor) -> Tensor:
        return images.gather(dim, (start[:, None] + offset).view(view).expand_as(images))

    part = weight.to(images.dtype).view(view)
    return take(first) * (2 * size - part) + take(second) * part
