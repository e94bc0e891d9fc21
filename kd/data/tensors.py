"""Tensors of what may be arrays, lists or numbers, and how they are called in messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd.errors import InputError

CONVERTED = ("P", "CMYK", "YCbCr", "LAB", "HSV")
Note = Callable[[str], None]


def as_tensor(given: Any, where: str) -> Tensor:
    """A tensor of what may be a tensor, an array, numbers, or a list of any of them or of Pillow images.

    Raises:
        InputError: what is none of these, or things of several shapes.
    """
    if isinstance(given, Tensor):
        return given
    if isinstance(given, (list, tuple)):
        given = [_plain(each) for each in given]
    try:
        if isinstance(given, (list, tuple)) and given and isinstance(given[0], Tensor):
            return torch.stack(list(given))
        array = np.asarray(given) if not isinstance(given, (list, tuple)) else np.stack([np.asarray(g) for g in given])
        array = array.astype(np.int64) if array.dtype in (np.uint16, np.uint32, np.uint64) else array
        return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, TypeError, RuntimeError) as error:
        shapes = {str(list(np.shape(each))) for each in given} if isinstance(given, (list, tuple)) else set()
        if len(shapes) > 1:
            first = " and ".join(sorted(shapes)[:2])
            raise InputError(f"{where} are of several shapes, {first}: bring them to one, by resizing say") from error
        raise InputError(f"{where} are {kind(given)}, not a tensor or an array of numbers") from error


def _plain(each: Any) -> Any:
    """A Pillow image whose numbers are not grey or RGB, as those of a palette, as RGB; anything else as it is."""
    return each.convert("RGB") if isinstance(each, Image.Image) and each.mode in CONVERTED else each


def span(numbers: Tensor) -> tuple[float, float]:
    """The least and the largest number; 0 and 0 if there is none."""
    if not numbers.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(numbers)
    return float(low), float(high)


def dtype(tensor: Tensor) -> str:
    """The type of its numbers, as torch calls it."""
    return str(tensor.dtype).removeprefix("torch.")


def kind(given: Any) -> str:
    """What something is, in words."""
    if isinstance(given, (Tensor, np.ndarray)):
        return f"{type(given).__name__} of {given.dtype}"
    if isinstance(given, (list, tuple)) and given:
        return f"a {type(given).__name__} of {type(given[0]).__name__}"
    return f"a {type(given).__name__}"
