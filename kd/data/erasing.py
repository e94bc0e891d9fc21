"""Boxes in images: random erasing, cutout, and the mask that CutMix shares with them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd.data.per_device import PerDevice
from kd.errors import InputError
from kd.rng import ERASE, below, hashed

STEPS = 64


def random_boxes(shape: Sequence[int], area: Sequence[float], aspect: float = 3.3) -> list[tuple[int, int]]:
    """Heights and widths of random erasing's boxes (Zhong et al. 2017, arXiv:1708.04896), all equally likely.

    Area uniform between the two shares of the image, log of height / width uniform within ``aspect``, rounded to
    pixels; boxes as large as the image are left out. The table is made on the host, so that integers alone choose.

    Raises:
        InputError: shares out of range, or no box fits.
    """
    if not _is_range(area) or area[1] >= 1:
        raise InputError(f"erase_area must be two shares 0 < least <= largest < 1, got {area}")
    return _fitting("erase_area", shape, area, aspect, most=(shape[1] - 1, shape[2] - 1))


def crop_boxes(shape: Sequence[int], scale: Sequence[float], aspect: float = 4 / 3) -> list[tuple[int, int]]:
    """Heights and widths of the random resized crop's boxes (Szegedy et al. 2014, arXiv:1409.4842), all equally likely.

    As :func:`random_boxes`, up to the whole image.

    Raises:
        InputError: shares out of range, or no box fits.
    """
    if not _is_range(scale):
        raise InputError(f"scale must be two shares 0 < least <= largest <= 1, got {scale}")
    return _fitting("scale", shape, scale, aspect, most=(shape[1], shape[2]))


def _is_range(shares: Any) -> bool:
    pair = isinstance(shares, Sequence) and len(shares) == 2 and all(isinstance(s, (int, float)) for s in shares)
    return pair and 0 < shares[0] <= shares[1] <= 1


def _fitting(
    option: str, shape: Sequence[int], area: Sequence[float], aspect: float, most: tuple[int, int]
) -> list[tuple[int, int]]:
    height, width = shape[1:]
    found = []
    for a in range(STEPS):
        size = height * width * (area[0] + (area[1] - area[0]) * (a + 0.5) / STEPS)
        for r in range(STEPS):
            ratio = math.exp(math.log(aspect) * (2 * (r + 0.5) / STEPS - 1))
            box = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if 0 < box[0] <= most[0] and 0 < box[1] <= most[1]:
                found.append(box)
    if not found:
        raise InputError(f"{option}={list(area)} gives no box inside images of {height}x{width}")
    return found


def centred_square(shape: Sequence[int], side: int) -> list[tuple[int, int]]:
    """Cutout's square (DeVries and Taylor 2017, arXiv:1708.04552), whose centre may be any pixel.

    Raises:
        InputError: a side out of range.
    """
    if not 0 < side <= 2 * min(shape[1:]):
        raise InputError(f"cutout must lie between 0 and twice the image size, got {side}")
    return [(side, side)]


def box_mask(top: Tensor, left: Tensor, height: Tensor, width: Tensor, shape: Sequence[int]) -> Tensor:
    """True [B, H, W] inside each image's box; boxes [B] may reach out of the image."""
    rows = torch.arange(shape[-2], device=top.device)
    columns = torch.arange(shape[-1], device=top.device)
    down = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    across = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return down[:, :, None] & across[:, None, :]


class Erasing:
    """Paints a box in a share of the images.

    Args:
        shape: [C, H, W] of the images.
        fill: the colour [C], in [0, 255].
        share: of the images that get a box.
        sizes: (height, width) of boxes, all equally likely.
        inside: whether the box lies inside the image, uniformly; else its centre is any pixel of it.

    Raises:
        InputError: a share out of range.
    """

    def __init__(
        self, shape: Sequence[int], fill: Sequence[int], share: float, sizes: list[tuple[int, int]], inside: bool
    ) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"erase must be a share in [0, 1], got {share}")
        self.shape, self.share, self.inside = tuple(shape), share, inside
        self.tables = PerDevice(torch.tensor(sizes), torch.tensor(list(fill), dtype=torch.uint8).view(-1, 1, 1))

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int | Tensor, number: int) -> Tensor:
        """The images [B, C, H, W] with their boxes; ``number`` sets several erasings of one image apart."""
        sizes, fill = self.tables.on(images.device)
        stream = ERASE + 4 * number + torch.arange(4, device=index.device)[:, None]
        bits = hashed(seed, epoch, index, stream)
        height, width = sizes[below(len(sizes), bits[1])].unbind(1)
        if self.inside:
            top, left = below(self.shape[1] - height + 1, bits[2]), below(self.shape[2] - width + 1, bits[3])
        else:
            top, left = below(self.shape[1], bits[2]) - height // 2, below(self.shape[2], bits[3]) - width // 2
        mask = box_mask(top, left, height, width, self.shape)
        mask = mask & (bits[0] < round(self.share * 2**32))[:, None, None]
        return torch.where(mask[:, None], fill, images)

    def describe(self) -> dict[str, Any]:
        """Everything that decides which pixels get which colour."""
        sizes, fill = self.tables.host
        digest = hashlib.sha256(sizes.numpy().tobytes()).hexdigest()[:16]
        return {"share": self.share, "inside": self.inside, "sizes": digest, "fill": fill.flatten().tolist()}
