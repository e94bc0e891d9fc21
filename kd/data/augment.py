"""Random choices that are computed and not remembered: pure functions of (seed, epoch, index).

A sample's augmentation is a *view*: with padding p and flips there are (2p + 1)^2 * 2 of them, numbered
``(dy * (2p + 1) + dx) * 2 + flip``. Whole batches are augmented at once, on whatever device they lie.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.hashing import hashed


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation of ``range(n)``, the same on every machine."""
    return torch.argsort(hashed(seed, epoch, torch.arange(n), stream=1), stable=True)


def views(index: Tensor, seed: int, epoch: int, pad: int, flip: bool) -> Tensor:
    """The view that each sample gets in this epoch, uniform over all views."""
    count = view_count(pad, flip)
    return (hashed(seed, epoch, index, stream=2) * count) >> 32


def view_count(pad: int, flip: bool) -> int:
    """How many views there are."""
    return (2 * pad + 1) ** 2 * (2 if flip else 1)


def crop_flip(images: Tensor, view: Tensor, pad: int, flip: bool) -> Tensor:
    """Each image's view: zero padding by ``pad``, a crop back to its size, and a horizontal flip or none.

    ``images`` [B, C, H, W] of any dtype, ``view`` [B].
    """
    if pad == 0 and not flip:
        return images
    batch, channels, height, width = images.shape
    flips, offset = (view % 2, view // 2) if flip else (torch.zeros_like(view), view)
    rows = (offset // (2 * pad + 1))[:, None] + torch.arange(height, device=view.device)
    columns = torch.arange(width, device=view.device).expand(batch, width)
    columns = torch.where(flips[:, None] == 1, width - 1 - columns, columns) + (offset % (2 * pad + 1))[:, None]
    padded = F.pad(images, (pad, pad, pad, pad)) if pad else images
    place = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    flat = padded.reshape(batch, channels, -1)
    taken = flat.gather(2, place.reshape(batch, 1, -1).expand(batch, channels, height * width))
    return taken.reshape(batch, channels, height, width)
