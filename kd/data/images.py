"""Converts images in any common form to pixels [B, C, H, W]; ambiguous input is refused with a one-line error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd.data.tensors import Note, as_tensor, dtype, span
from kd.errors import InputError

CHANNELS = (1, 3, 4)
SLACK = 0.1  # how far interpolated pixels may lie outside [0, 1]


def images_of(
    value: Any,
    where: str,
    note: Note,
    shape: Sequence[int] | None = None,
    ranged: bool = True,
    finite: bool = True,
) -> Tensor:
    """Images [B, C, H, W] as uint8, or as float32 in [0, 1].

    Args:
        value: a tensor, an array or a list of images: [B, C, H, W], [B, H, W, C] or [B, H, W]; booleans, integers
            in 0..255, or floats in [0, 1].
        where: their name in messages, for example ``the training images``.
        note: called with a message for each conversion.
        shape: [C, H, W], if known.
        ranged: whether the range of floats is checked.
        finite: whether that check also refuses non-finite values.

    Raises:
        InputError: anything else.
    """
    images = _arranged(as_tensor(value, where), where, note, shape)
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        note(f"{where} are booleans: converted to white and black")
        return images.to(torch.uint8) * 255
    if images.is_complex():
        raise InputError(f"{where} are complex numbers; expected uint8, or float in [0, 1]")
    if not images.is_floating_point():
        low, high = span(images)
        if low < 0 or high > 255:
            raise InputError(f"{where} are {dtype(images)} from {low:g} to {high:g}; expected 0 to 255")
        note(f"{where} are {dtype(images)} in 0..255: converted to uint8")
        return images.to(torch.uint8)
    if ranged:
        _check_range(images, where, finite)
    return images if images.dtype == torch.float64 else images.float()


def _arranged(images: Tensor, where: str, note: Note, shape: Sequence[int] | None) -> Tensor:
    """The images with channels second, if the channel dimension is unambiguous."""
    actual = list(images.shape)
    if images.ndim == 3 and shape is not None and shape[0] != 1:
        raise InputError(
            f"{where} are {actual}, not [B, C, H, W]; add a batch dimension to a single image: images[None]"
        )
    if images.ndim == 3:
        note(f"{where} are {actual}: read as [B, H, W] with one channel")
        return images.unsqueeze(1)
    if images.ndim != 4:
        raise InputError(f"{where} are {actual}, not [B, C, H, W]")
    channels = CHANNELS if shape is None else (shape[0],)
    last = images.shape[3] in channels and (shape is not None or images.shape[3] < images.shape[1])
    if images.shape[1] not in channels and last:
        note(f"{where} are {actual}: read as [B, H, W, C]")
        return images.permute(0, 3, 1, 2).contiguous()
    if shape is not None and images.shape[1] != shape[0]:
        raise InputError(f"{where} are {actual}, but the declared shape [C, H, W] is {list(shape)}")
    return images


def _check_range(images: Tensor, where: str, finite: bool) -> None:
    low, high = span(images)
    if finite and not -math.inf < low <= high < math.inf:
        raise InputError(f"{where} have values that are not finite")
    if low < -SLACK:
        raise InputError(
            f"{where} are float from {low:.3g} to {high:.3g}, which looks normalised; expected uint8, or float in "
            "[0, 1], as kd normalises in front of each network: remove the normalisation, and set its mean and std "
            "as `mean` and `std` of the data module"
        )
    if high > 1 + SLACK:
        raise InputError(
            f"{where} are float from {low:.3g} to {high:.3g}; expected uint8, or float in [0, 1]: divide them by "
            "their largest possible value (255 for bytes), or pass bytes as uint8"
        )
