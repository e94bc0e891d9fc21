"""From a file to an image."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd.errors import InputError


class File(NamedTuple):
    """An image file, or ``length`` bytes of a larger one from ``offset`` on, and its class number, -1 if not known."""

    path: str
    label: int
    offset: int = 0
    length: int | None = None

    def __str__(self) -> str:
        return self.path if self.length is None else f"{self.path} (the image at byte {self.offset})"


def decode(file: File) -> Tensor:
    """The image as uint8 [3, H, W]: grey ones in three equal channels, transparency dropped.

    Raises:
        InputError: it is no whole image; the file is named.
    """
    try:
        with open(file.path, "rb") as stream:
            stream.seek(file.offset)
            return pixels(Image.open(io.BytesIO(stream.read() if file.length is None else stream.read(file.length))))
    except Exception as error:  # Pillow's readers raise whatever comes along in a broken file
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{file} cannot be decoded: {type(error).__name__} {line}") from error


def pixels(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 [3, H, W]."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
