"""Decoding of image files."""

from __future__ import annotations

import io
import os
import stat
import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, UnidentifiedImageError
from torch import Tensor

from kd.errors import InputError

ORIENTATION, BITS, SAMPLES, PHOTOMETRIC = 274, 258, 339, 262  # tags of EXIF and TIFF
DARK = 4096  # a 16-bit image whose largest value is below this most likely holds values of 12 bits or fewer
# warnings of broken metadata, and of images near Pillow's size limit, beyond which it raises an error
warnings.filterwarnings("ignore", module=r"PIL\.")


class Damaged(InputError):
    """An image that cannot be decoded."""


class File(NamedTuple):
    """An image file, or ``length`` bytes of a larger one from ``offset`` on, and its class number, -1 if unknown."""

    path: str
    label: int
    offset: int = 0
    length: int | None = None

    def __str__(self) -> str:
        path = printable(self.path)
        return path if self.length is None else f"{path} (the image at byte {self.offset})"


class Reading(NamedTuple):
    """How files are converted to pixels.

    Args:
        exif: whether the EXIF orientation is applied.
        background: the colour behind transparent pixels, as Pillow names colours: ``white``, ``#ff8800``.
        white: the white level of images with more than 8 bits; None for the maximum of their format.
    """

    exif: bool = True
    background: str = "white"
    white: float | None = None

    def check(self) -> None:
        """Raises InputError for an unknown colour, or a ``white`` that is not above 0."""
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(
                f"background={self.background!r} is not a colour: set white, black or '#rrggbb'"
            ) from error
        if self.white is not None and not 0 < self.white < float("inf"):
            raise InputError(f"white={self.white} must be a finite number above 0")


PLAIN = Reading()


def printable(text: str | os.PathLike[str]) -> str:
    """A path or name for the terminal, with escapes for bytes that are not UTF-8 and unprintable characters."""
    decoded = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in decoded)


def decode(file: File, reading: Reading = PLAIN) -> Tensor:
    """The image as uint8 [3, H, W]: greyscale images in three equal channels, the first frame of several.

    Raises:
        Damaged: the image is incomplete or corrupt; the file is named.
        InputError: an ambiguous white level; the file is named.
    """
    try:
        return pixels(Image.open(io.BytesIO(contents(file))), reading)
    except InputError as error:
        raise InputError(f"{file} {error}") from error
    except UnidentifiedImageError as error:
        raise Damaged(f"{file} cannot be decoded: Pillow does not support its format{_pointer(file)}") from error
    except Exception as error:  # Pillow's readers raise any exception on a broken file
        line = (str(error).splitlines() or [""])[0]
        raise Damaged(f"{file} cannot be decoded: {type(error).__name__} {line}") from error


def _pointer(file: File) -> str:
    pointer = contents(file).startswith(b"version https://git-lfs")
    return ": it is a git-LFS pointer; fetch the image with git lfs pull" if pointer else ""


def contents(file: File) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    if not stat.S_ISREG(os.stat(file.path).st_mode):
        raise OSError("is not a regular file")
    with open(file.path, "rb") as stream:
        stream.seek(file.offset)
        return stream.read() if file.length is None else stream.read(file.length)


def pixels(image: Image.Image, reading: Reading = PLAIN) -> Tensor:
    """A Pillow image as uint8 [3, H, W].

    Raises:
        InputError: an ambiguous white level.
    """
    tiff = image.format == "TIFF"
    if tiff and not reading.exif:
        image.getexif().pop(ORIENTATION, None)  # Pillow applies it to images of this format by itself
    raw = _raw_mode(image)
    image.load()
    turned = _orientation(image) if reading.exif and not tiff else None
    if image.mode == "F" or image.mode.startswith("I"):
        image = _of_8_bits(image, raw, reading.white)
    elif "16" in raw:
        _check_colours(image, reading.white)
    if turned is not None:
        image = image.transpose(turned)
    return torch.from_numpy(np.array(_opaque(image, reading.background))).permute(2, 0, 1).contiguous()


def _raw_mode(image: Image.Image) -> str:
    """The storage mode of the values as Pillow calls it; empty if its reader scales them by a stated maximum.

    For an image that is already loaded, or without a file, it is the mode.
    """
    tile = (getattr(image, "tile", None) or [None])[0]
    if tile is None or tile[0] == "ppm":
        return "" if tile else image.mode
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    way = Image.Transpose
    turns = {2: way.FLIP_LEFT_RIGHT, 3: way.ROTATE_180, 4: way.FLIP_TOP_BOTTOM, 5: way.TRANSPOSE}
    turns |= {6: way.ROTATE_270, 7: way.TRANSVERSE, 8: way.ROTATE_90}
    try:
        return turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken metadata, which viewers ignore too
        return None


def _of_8_bits(image: Image.Image, raw: str, white: float | None) -> Image.Image:
    """Grey values of 9 to 32 bits, or floats, as 8-bit grey."""
    values: NDArray[np.float64] = np.asarray(image).astype(np.float64)
    most, least = float(values.max()), float(values.min())
    whole = image.mode != "F"
    top = white if white is not None else _largest(image)
    kind = "32-bit integers" if whole else "floats"
    if top is None:
        raise InputError(f"holds {kind} up to {most:g} without a stated white level: set data.white=NUMBER")
    if not 0 <= least <= most <= top:
        stated = f"data.white={white:g}" if white is not None else "its format"
        raise InputError(
            f"holds values from {least:g} to {most:g}, but {stated} allows 0 to {top:g}: set data.white=NUMBER"
        )
    if white is None and top == 65535 and 0 < most < DARK and raw:
        remedy = "set data.white=4095 for 12-bit values, or data.white=65535 to keep the values"
        raise InputError(f"{_dark(f'no value above {most:g}')} {remedy}")
    scaled = values * 256 // (top + 1) if whole else (values / top * 255).round()
    grey = scaled.clip(0, 255).astype(np.uint8)
    inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    return Image.fromarray(255 - grey if inverted else grey)


def _largest(image: Image.Image) -> float | None:
    """The maximum of the format; None if none is stated."""
    if image.format == "TIFF":
        bits, kind = (image.tag_v2.get(tag, (1,))[0] for tag in (BITS, SAMPLES))  # type: ignore[attr-defined]
        if kind == 3:
            return 1.0
        return None if bits > 16 else float(2 ** (bits - (kind == 2)) - 1)
    return 1.0 if image.mode == "F" else 65535.0


def _check_colours(image: Image.Image, white: float | None) -> None:
    """Refuses 16-bit colours, of which Pillow keeps the upper 8 bits, if the lower bits hold the image."""
    if white not in (None, 65535):
        raise InputError(
            f"has 16-bit colours, of which the upper 8 bits are read: data.white={white:g} is not supported"
        )
    most = int(np.asarray(image)[..., :3].max()) if image.mode in ("RGB", "RGBA", "RGBX") else DARK
    if white is None and 0 < most < DARK // 256:
        raise InputError(f"{_dark(f'no value above {256 * most + 255}')} set data.white=65535 to keep the values")


def _dark(values: str) -> str:
    return f"has 16 bits with {values}, while 65535 is white, so it would be read as black:"


def _opaque(image: Image.Image, background: str) -> Image.Image:
    """The image as RGB, with one colour behind transparent pixels."""
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
