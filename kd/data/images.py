"""Images as people have them, brought to pixels [B, C, H, W]; what could mean two things is refused in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd.data.tensors import Note, as_tensor, dtype, span
from kd.errors import InputError

CHANNELS = (1, 3, 4)
SLACK = 0.1  # by how much interpolated pixels may lie outside of [0, 1]


def images_of(
    given: Any,
    where: str,
    note: Note,
    shape: Sequence[int] | None = None,
    ranged: bool = True,
    finite: bool = True,
) -> Tensor:
    """Images [B, C, H, W] as uint8, or as float32 in [0, 1].

    Args:
        given: a tensor, an array or a list of images: [B, C, H, W], [B, H, W, C] or [B, H, W]; booleans, whole numbers
            in 0..255, or floats in [0, 1].
        where: what they are called in messages, ``the training images``.
        note: is told what was converted.
        shape: [C, H, W], where it is known.
        ranged: whether the range of floats is looked at.
        finite: whether that refuses what is not a number as well.

    Raises:
        InputError: anything else.
    """
    images = _arranged(as_tensor(given, where), where, note, shape)
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        note(f"{where} are true or false: taken as white and black")
        return images.to(torch.uint8) * 255
    if images.is_complex():
        raise InputError(f"{where} are complex numbers; kd takes uint8, or float in [0, 1]")
    if not images.is_floating_point():
        low, high = span(images)
        if low < 0 or high > 255:
            raise InputError(f"{where} are {dtype(images)} from {low:g} to {high:g}; kd takes 0 to 255")
        note(f"{where} are {dtype(images)} in 0..255: taken as uint8")
        return images.to(torch.uint8)
    if ranged:
        _check_range(images, where, finite)
    return images if images.dtype == torch.float64 else images.float()


def _arranged(images: Tensor, where: str, note: Note, shape: Sequence[int] | None) -> Tensor:
    """With channels second, where it is clear which dimension they are."""
    found = list(images.shape)
    if images.ndim == 3 and shape is not None and shape[0] != 1:
        raise InputError(f"{where} are {found}, not [B, C, H, W]; a single image needs a first dimension: images[None]")
    if images.ndim == 3:
        note(f"{where} are {found}: taken as [B, H, W] of one channel")
        return images.unsqueeze(1)
    if images.ndim != 4:
        raise InputError(f"{where} are {found}, not [B, C, H, W]")
    channels = CHANNELS if shape is None else (shape[0],)
    last = images.shape[3] in channels and (shape is not None or images.shape[3] < images.shape[1])
    if images.shape[1] not in channels and last:
        note(f"{where} are {found}: taken as [B, H, W, C]")
        return images.permute(0, 3, 1, 2).contiguous()
    if shape is not None and images.shape[1] != shape[0]:
        raise InputError(f"{where} are {found}, but their shape [C, H, W] was said to be {list(shape)}")
    return images


def _check_range(images: Tensor, where: str, finite: bool) -> None:
    low, high = span(images)
    if finite and not -math.inf < low <= high < math.inf:
        raise InputError(f"{where} hold numbers that are not finite")
    if low < -SLACK:
        raise InputError(
            f"{where} are float from {low:.3g} to {high:.3g}, as if normalised already; kd takes uint8, or float in "
            "[0, 1], and normalises in front of each network: leave the normalisation out, and give its mean and std "
            "to the data module as `mean` and `std`"
        )
    if high > 1 + SLACK:
        raise InputError(
            f"{where} are float from {low:.3g} to {high:.3g}; kd takes uint8, or float in [0, 1]: divide them by "
            "their largest possible value (255 for bytes), or give bytes as uint8"
        )
