"""Pictures of every mode, depth, orientation and transparency become correct uint8, or are refused by name."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.decode import PLAIN, Damaged, File, Reading, decode, pixels
from kd.data.resized_crop import enlarged
from kd.errors import InputError

RAMP = [17 * i for i in range(16)]  # 16 steps from black to white


def ramp(white: int, kind: str) -> np.ndarray:
    return np.linspace(0, white, 16).round().astype(kind).reshape(4, 4)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(content: bytes, reading: Reading = PLAIN) -> torch.Tensor:
    return pixels(Image.open(io.BytesIO(content)), reading)


def png(values: np.ndarray, depth: int, colour: int) -> bytes:
    """A PNG of a depth and colour type that Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    kind = ">u2" if depth == 16 else "u1"
    rows = b"".join(b"\0" + np.ascontiguousarray(row).astype(kind).tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def netpbm(sign: str, white: int, kind: str) -> bytes:
    values = ramp(white, kind)
    values = values if sign == "P5" else np.stack([values] * 3, -1).astype(kind)
    return f"{sign}\n4 4\n{white}\n".encode() + values.tobytes()


DEEP = {
    "PGM of 8 bits": netpbm("P5", 255, "u1"),
    "PGM of 10 bits": netpbm("P5", 1023, ">u2"),
    "PGM of 12 bits": netpbm("P5", 4095, ">u2"),
    "PGM of 16 bits": netpbm("P5", 65535, ">u2"),
    "PPM of 10 bits": netpbm("P6", 1023, ">u2"),
    "PPM of 16 bits": netpbm("P6", 65535, ">u2"),
    "PNG of 16 bits": encoded(Image.fromarray(ramp(65535, "u2")), "PNG"),
    "PNG of 16 bits in colour": png(np.stack([ramp(65535, "u2")] * 3, -1), 16, 2),
    "TIFF of 16 bits": encoded(Image.fromarray(ramp(65535, "u2")), "TIFF"),
    "TIFF of floats": encoded(Image.fromarray(ramp(65535, "f4") / 65535), "TIFF"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_are_scaled_by_the_largest_value_of_the_format(kind: str) -> None:
    found = read(DEEP[kind])
    assert found.dtype == torch.uint8
    for channel in found:
        assert channel.flatten().tolist() == RAMP


UNCLEAR = {
    "TIFF of 32-bit integers": (encoded(Image.fromarray(ramp(65535, "i4")), "TIFF"), "32-bit integers up to 65535"),
    "TIFF of floats up to 255": (encoded(Image.fromarray(ramp(255, "f4")), "TIFF"), "from 0 to 255, but its format"),
    "TIFF of negative floats": (encoded(Image.fromarray(ramp(1, "f4") - 0.5), "TIFF"), "from -0.5 to 0.5"),
    "TIFF of floats with a NaN": (encoded(Image.fromarray(np.full((4, 4), np.nan, "f4")), "TIFF"), "from nan to nan"),
    "PNG of 16 bits that holds 12": (encoded(Image.fromarray(ramp(4095, "u2")), "PNG"), "data.white=4095"),
    "PGM of 16 bits that holds 12": (b"P5\n4 4\n65535\n" + ramp(4095, ">u2").tobytes(), "data.white=4095"),
    "colour PNG of 16 bits that holds 12": (png(np.stack([ramp(4095, "u2")] * 3, -1), 16, 2), "no value above 4095"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_values_whose_white_is_not_known_are_refused_with_the_file_s_name(kind: str, tmp_path: Path) -> None:
    content, said = UNCLEAR[kind]
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"scan\.png ") as caught:
        decode(File(str(path), 0))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize(("kind", "white"), [("i4", 65535), ("i4", 1000), ("f4", 255), ("u2", 4095)])
def test_stated_white_value_scales(kind: str, white: int) -> None:
    container = "PNG" if kind == "u2" else "TIFF"
    found = read(encoded(Image.fromarray(ramp(white, kind)), container), Reading(white=white))
    assert (found[0].flatten().int() - torch.tensor(RAMP)).abs().max() <= 1


def test_a_black_picture_of_16_bits_is_black() -> None:
    assert read(encoded(Image.fromarray(np.zeros((4, 4), "u2")), "PNG")).max() == 0


MODES = {"L": 124, "LA": 124, "1": 255, "P": (204, 102, 51), "PA": (204, 102, 51), "CMYK": (200, 100, 50)}


@pytest.mark.parametrize("mode", MODES)
def test_palettes_grey_with_alpha_one_bit_and_cmyk_are_read(mode: str) -> None:
    colour = (255, 255, 255) if mode == "1" else (200, 100, 50)
    image = Image.new("RGB", (4, 4), colour).convert("LA" if mode == "LA" else mode)
    found = read(encoded(image, "TIFF"))
    expected = MODES[mode] if isinstance(MODES[mode], tuple) else (MODES[mode],) * 3
    assert found[:, 1, 1].tolist() == list(expected)


def upright() -> Image.Image:
    """A white corner at the upper left of a picture that is wider than high."""
    corner = np.zeros((32, 48), np.uint8)
    corner[:8, :8] = 255
    return Image.fromarray(corner)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_turns_pictures_of_every_format_alike(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(upright().convert("RGB"), kind, exif=exif)
    white = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    turned = read(content)
    assert turned.shape[1:] == ((48, 32) if orientation > 4 else (32, 48))
    down, right = white[orientation]
    assert turned[0, -4 * down or 4, -4 * right or 4] > 200
    assert (turned[0] > 128).sum() == 64
    still = read(content, Reading(exif=False))
    assert still.shape[1:] == (32, 48)
    assert still[0, 4, 4] > 200


@pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")
def test_broken_exif_is_no_orientation() -> None:
    content = encoded(upright().convert("RGB"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read(content).shape == (3, 32, 48)


def transparent(mode: str) -> bytes:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (200, 100, 50, 255))
    return encoded(image if mode == "RGBA" else image.quantize(), "PNG")


@pytest.mark.parametrize("mode", ["RGBA", "palette"])
@pytest.mark.parametrize(
    ("background", "colour"), [("white", [255] * 3), ("#ff8000", [255, 128, 0]), ("black", [0] * 3)]
)
def test_transparent_pixels_show_the_stated_background(mode: str, background: str, colour: list[int]) -> None:
    found = read(transparent(mode), Reading(background=background))
    assert found[:, 0, 0].tolist() == colour
    assert found[:, 1, 1].tolist() == [200, 100, 50]


def test_half_transparent_pixels_are_mixed_with_the_background_white_by_default() -> None:
    assert read(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 51)), "PNG"))[:, 0, 0].tolist() == [204] * 3
    assert read(encoded(Image.new("LA", (2, 2), (0, 51)), "PNG"))[:, 0, 0].tolist() == [204] * 3


@pytest.mark.parametrize("background", ["whit", "", "#12", 3])
def test_an_unknown_background_is_refused(background: Any) -> None:
    with pytest.raises(InputError, match="is not a colour: set white, black"):
        Reading(background=background).check()


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (200, 100)]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert read(content)[0, 0, 0] == 200


def test_a_picture_beyond_pillow_s_limit_is_refused_and_one_near_it_gives_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(encoded(Image.new("L", (40, 40)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        assert decode(File(str(path), 0)).shape == (3, 40, 40)
    assert not said
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Damaged, match=r"big\.png cannot be decoded: DecompressionBombError"):
        decode(File(str(path), 0))


def test_a_pipe_or_a_device_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(Damaged, match="is not a regular file"):
            decode(File(str(path), 0))


def test_non_utf_8_name_is_printed_with_escapes(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9\x1b.png")
    with open(path, "wb") as stream:
        stream.write(b"no picture")
    with pytest.raises(Damaged) as caught:
        decode(File(os.fsdecode(path), 0))
    assert "caf\\xe9\\x1b.png cannot be decoded" in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("side", [1452, 1453, 1600])
def test_a_resized_crop_of_large_images_does_not_overflow(side: int) -> None:
    images = torch.full((1, 1, side, side), 255, dtype=torch.uint8)
    box = torch.tensor([0]), torch.tensor([0]), torch.tensor([side - 1]), torch.tensor([side - 1])
    assert enlarged(images, *box).min() == 255
