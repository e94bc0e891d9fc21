"""Converts arrays, lists and numbers to tensors, and describes them in messages."""

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


def as_tensor(value: Any, where: str) -> Tensor:
    """A tensor from a tensor, an array, numbers, or a list of any of them or of Pillow images.

    Raises:
        InputError: any other type, or several shapes.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple)):
        value = [_plain(each) for each in value]
    try:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return torch.stack(list(value))
        array = np.asarray(value) if not isinstance(value, (list, tuple)) else np.stack([np.asarray(g) for g in value])
        array = array.astype(np.int64) if array.dtype in (np.uint16, np.uint32, np.uint64) else array
        return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, TypeError, RuntimeError) as error:
        shapes = {str(list(np.shape(each))) for each in value} if isinstance(value, (list, tuple)) else set()
        if len(shapes) > 1:
            first = " and ".join(sorted(shapes)[:2])
            raise InputError(f"{where} have several shapes, {first}: resize them to one") from error
        raise InputError(f"{where} are {kind(value)}, not a tensor or an array of numbers") from error


def _plain(each: Any) -> Any:
    """Converts Pillow images of other modes than grey and RGB, such as palettes, to RGB; returns the rest unchanged."""
    return each.convert("RGB") if isinstance(each, Image.Image) and each.mode in CONVERTED else each


def span(numbers: Tensor) -> tuple[float, float]:
    """The minimum and the maximum; 0 and 0 if there are no values."""
    if not numbers.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(numbers)
    return float(low), float(high)


def dtype(tensor: Tensor) -> str:
    """The name of its dtype, without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def kind(value: Any) -> str:
    """A description of the type of a value."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of {value.dtype}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"
