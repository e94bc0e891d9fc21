"""Boxes in images: random erasing, cutout, and their mask, which CutMix uses too."""

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

    Area uniform between the two fractions of the image, log of height / width uniform within ``aspect``, rounded to
    pixels; boxes as large as the image are excluded. The table is made on the host, so the choice is in integers.

    Raises:
        InputError: fractions out of range, or no box fits.
    """
    if not _is_range(area) or area[1] >= 1:
        raise InputError(f"erase_area must be two fractions 0 < minimum <= maximum < 1, got {area}")
    return _fitting("erase_area", shape, area, aspect, most=(shape[1] - 1, shape[2] - 1))


def crop_boxes(shape: Sequence[int], scale: Sequence[float], aspect: float = 4 / 3) -> list[tuple[int, int]]:
    """Heights and widths of the random resized crop's boxes (Szegedy et al. 2014, arXiv:1409.4842), all equally likely.

    Like :func:`random_boxes`, up to the whole image.

    Raises:
        InputError: fractions out of range, or no box fits.
    """
    if not _is_range(scale):
        raise InputError(f"scale must be two fractions 0 < minimum <= maximum <= 1, got {scale}")
    return _fitting("scale", shape, scale, aspect, most=(shape[1], shape[2]))


def _is_range(shares: Any) -> bool:
    pair = isinstance(shares, Sequence) and len(shares) == 2 and all(isinstance(s, (int, float)) for s in shares)
    return pair and 0 < shares[0] <= shares[1] <= 1


def _fitting(
    option: str, shape: Sequence[int], area: Sequence[float], aspect: float, most: tuple[int, int]
) -> list[tuple[int, int]]:
    height, width = shape[1:]
    boxes = []
    for a in range(STEPS):
        size = height * width * (area[0] + (area[1] - area[0]) * (a + 0.5) / STEPS)
        for r in range(STEPS):
            ratio = math.exp(math.log(aspect) * (2 * (r + 0.5) / STEPS - 1))
            box = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if 0 < box[0] <= most[0] and 0 < box[1] <= most[1]:
                boxes.append(box)
    if not boxes:
        raise InputError(f"{option}={list(area)} gives no box that fits into images of {height}x{width}")
    return boxes


def centred_square(shape: Sequence[int], side: int) -> list[tuple[int, int]]:
    """Cutout's square (DeVries and Taylor 2017, arXiv:1708.04552), whose centre may be any pixel.

    Raises:
        InputError: a side out of range.
    """
    if not 0 < side <= 2 * min(shape[1:]):
        raise InputError(f"cutout must lie between 0 and twice the image size, got {side}")
    return [(side, side)]


def box_mask(y: Tensor, x: Tensor, height: Tensor, width: Tensor, shape: Sequence[int]) -> Tensor:
    """True [B, H, W] inside each image's box; boxes [B] may extend beyond the image."""
    rows = torch.arange(shape[-2], device=y.device)
    columns = torch.arange(shape[-1], device=y.device)
    down = (rows >= y[:, None]) & (rows < (y + height)[:, None])
    across = (columns >= x[:, None]) & (columns < (x + width)[:, None])
    return down[:, :, None] & across[:, None, :]


class Erasing:
    """Fills a box in a fraction of the images.

    Args:
        shape: [C, H, W] of the images.
        fill: the colour [C], in [0, 255].
        share: the fraction of images with a box.
        sizes: (height, width) of boxes, all equally likely.
        inside: whether the box lies inside the image, uniformly; otherwise its centre is any pixel.

    Raises:
        InputError: a fraction out of range.
    """

    def __init__(
        self, shape: Sequence[int], fill: Sequence[int], share: float, sizes: list[tuple[int, int]], inside: bool
    ) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"erase must be a fraction in [0, 1], got {share}")
        self.shape, self.share, self.inside = tuple(shape), share, inside
        self.tables = PerDevice(torch.tensor(sizes), torch.tensor(list(fill), dtype=torch.uint8).view(-1, 1, 1))

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int | Tensor, number: int) -> Tensor:
        """The images [B, C, H, W] with their boxes; ``number`` distinguishes several erasings of one image."""
        sizes, fill = self.tables.on(images.device)
        stream = ERASE + 4 * number + torch.arange(4, device=index.device)[:, None]
        bits = hashed(seed, epoch, index, stream)
        height, width = sizes[below(len(sizes), bits[1])].unbind(1)
        if self.inside:
            y, x = (
                below(self.shape[1] - height + 1, bits[2]),
                below(self.shape[2] - width + 1, bits[3]),
            )
        else:
            y, x = (
                below(self.shape[1], bits[2]) - height // 2,
                below(self.shape[2], bits[3]) - width // 2,
            )
        mask = box_mask(y, x, height, width, self.shape)
        mask = mask & (bits[0] < round(self.share * 2**32))[:, None, None]
        return torch.where(mask[:, None], fill, images)

    def describe(self) -> dict[str, Any]:
        """Everything that determines the erased pixels."""
        sizes, fill = self.tables.host
        digest = hashlib.sha256(sizes.numpy().tobytes()).hexdigest()[:16]
        return {"share": self.share, "inside": self.inside, "sizes": digest, "fill": fill.flatten().tolist()}
