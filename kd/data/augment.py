"""Stateless random choices: pure functions of (seed, epoch, index).

A sample's augmentation is a *view*: with padding p and flips there are (2p + 1)^2 * 2 of them, numbered
``(dy * (2p + 1) + dx) * 2 + flip``. Whole batches are augmented at once, on their device, in integer
arithmetic, so that every device computes the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.color_jitter import Jitter
from kd.data.erasing import Erasing, centred_square, random_boxes
from kd.data.resized_crop import ResizedCrop
from kd.errors import InputError, unknown
from kd.rng import ORDER, TRANSFORM, VIEW, VIEWS, below, hashed

if TYPE_CHECKING:
    from kd.data.transforms import PerSample

BORDERS = ("zero", "edge", "reflect")
RULE = 1  # increased when a change of the code changes the pixels of some view


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation of ``range(n)``, the same on every machine."""
    return torch.argsort(hashed(seed, epoch, torch.arange(n), ORDER), stable=True)


def views(index: Tensor, seed: int, epoch: int | Tensor, pad: int, flip: bool) -> Tensor:
    """The crop and flip of each sample in this epoch, uniform over all of them."""
    count = view_count(pad, flip)
    return below(count, hashed(seed, epoch, index, VIEW)) if count > 1 else torch.zeros_like(index)


def view_count(pad: int, flip: bool) -> int:
    """Number of crops and flips."""
    return (2 * pad + 1) ** 2 * (2 if flip else 1)


def crop_flip(images: Tensor, view: Tensor, pad: int, flip: bool, border: str = "zero") -> Tensor:
    """Each image's view: padding by ``pad`` pixels, a crop to the original size, and possibly a horizontal flip.

    Equivalently, a shift by up to ``pad`` pixels in each direction; new pixels are zero, the edge's, or reflected.
    ``images`` [B, C, H, W] of any dtype, ``view`` [B].
    """
    if pad == 0 and not flip:
        return images
    batch, channels, height, width = images.shape
    flips, offset = (view % 2, view // 2) if flip else (torch.zeros_like(view), view)
    rows = (offset // (2 * pad + 1))[:, None] + torch.arange(height, device=view.device)
    columns = torch.arange(width, device=view.device).expand(batch, width)
    columns = torch.where(flips[:, None] == 1, width - 1 - columns, columns) + (offset % (2 * pad + 1))[:, None]
    if border == "zero":
        images = F.pad(images, (pad, pad, pad, pad))
    else:
        rows, columns = _inside(rows - pad, height, border), _inside(columns - pad, width, border)
    position = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    flat = images.reshape(batch, channels, -1)
    taken = flat.gather(2, position.reshape(batch, 1, -1).expand(batch, channels, height * width))
    return taken.reshape(batch, channels, height, width)


def _inside(position: Tensor, size: int, border: str) -> Tensor:
    if border == "edge":
        return position.clamp(0, size - 1)
    return size - 1 - (size - 1 - position.abs()).abs()


def _per_sample(transform: Any, shape: Sequence[int]) -> PerSample:
    from kd.data.transforms import PerSample  # torchvision takes a second to import

    return PerSample(transform, shape)


class Augment:
    """Augmentation of each training image: crop and flip, ``scale``, ``jitter``, ``transform``, ``erase``, ``cutout``.

    Args:
        shape: [C, H, W] of the images.
        fill: the colour [C] of erased pixels, in [0, 255].
        pad: the random crop's padding in pixels: the maximum shift in each direction.
        border: the padding mode: ``zero``, ``edge`` or ``reflect``.
        flip: whether half of the images are flipped horizontally.
        erase: the fraction of images from which a random box is erased (see :func:`~kd.data.erasing.random_boxes`).
        erase_area: the minimum and maximum fraction of the image area in this box.
        cutout: side of a square erased from every image, in pixels (see :func:`~kd.data.erasing.centred_square`).
        transform: a per-sample transform (see :class:`~kd.data.transforms.PerSample`), or None.
        keep: number of views of each sample, drawn once for all runs; 0 for a new one each epoch.
        scale: the minimum and maximum fraction of the image area in a random box, which is enlarged to the image's
            size (see :class:`~kd.data.resized_crop.ResizedCrop`); None for none.
        jitter: strength of the changes of brightness, contrast and saturation (see
            :class:`~kd.data.color_jitter.Jitter`).

    Raises:
        InputError: a number out of range, or a transform that changes an image's shape or type.
    """

    def __init__(
        self,
        shape: Sequence[int],
        fill: Sequence[int],
        pad: int = 0,
        border: str = "zero",
        flip: bool = False,
        erase: float = 0.0,
        erase_area: Sequence[float] = (0.02, 0.33),
        cutout: int = 0,
        transform: Any = None,
        keep: int = 0,
        scale: Sequence[float] | None = None,
        jitter: float = 0.0,
    ) -> None:
        if not 0 <= pad < min(shape[1:]):
            raise InputError(f"pad must be at least 0 and less than the image size, got {pad}")
        if border not in BORDERS:
            raise unknown("border", border, BORDERS)
        if keep < 0:
            raise InputError(f"views must be at least 1, or 0 for a new one each epoch; got {keep}")
        self.pad, self.border, self.flip, self.keep = pad, border, flip, keep
        self.transform = _per_sample(transform, shape) if transform else None
        self.whole: dict[str, ResizedCrop | Jitter] = {}
        if scale is not None:
            self.whole["scale"] = ResizedCrop(shape, scale)
        if jitter:
            self.whole["jitter"] = Jitter(jitter)
        self.erasings: dict[str, Erasing] = {}
        if erase:
            self.erasings["erase"] = Erasing(shape, fill, erase, random_boxes(shape, erase_area), inside=True)
        if cutout:
            self.erasings["cutout"] = Erasing(shape, fill, 1.0, centred_square(shape, cutout), inside=False)

    @property
    def views(self) -> int:
        """Number of views of an image; 0 if they cannot be enumerated."""
        if self.keep:
            return self.keep
        return 0 if self.whole or self.transform or self.erasings else view_count(self.pad, self.flip)

    def draw(self, index: Tensor, seed: int, epoch: int | Tensor) -> tuple[Tensor | None, int, int | Tensor]:
        """Each sample's view where views can be enumerated, and the (seed, epoch) from which all its choices are drawn.

        With ``keep``, views are drawn as epochs of a separate seed, independent of the run's seed.
        """
        if self.keep:
            view = below(self.keep, hashed(seed, epoch, index, VIEW))
            return view, VIEWS, view
        return (views(index, seed, epoch, self.pad, self.flip) if self.views else None), seed, epoch

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int | Tensor, view: Tensor | None) -> Tensor:
        """The images [B, C, H, W] as uint8, augmented; ``view`` are their crops and flips, if already drawn."""
        if view is None and (self.pad or self.flip):
            view = views(index, seed, epoch, self.pad, self.flip)
        if view is not None:
            images = crop_flip(images, view, self.pad, self.flip, self.border)
        for change in self.whole.values():
            images = change(images, index, seed, epoch)
        if self.transform is not None:
            images = self.transform(images, hashed(seed, epoch, index, TRANSFORM))
        for number, erasing in enumerate(self.erasings.values()):
            images = erasing(images, index, seed, epoch, number)
        return images

    def describe(self) -> dict[str, Any]:
        """Everything that determines the pixels of a view, in plain containers."""
        return {
            "rule": RULE,
            "pad": self.pad,
            "border": self.border,
            "flip": self.flip,
            "transform": self.transform.describe() if self.transform else None,
            **{name: change.describe() for name, change in self.whole.items()},
            **{name: erasing.describe() for name, erasing in self.erasings.items()},
            "views": self.views,
        }
