"""What the options of pictures in files are where nobody gives them: scaled to the data that is there."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from statistics import median

from PIL import Image

from kd.data.decode import Damaged, File, Reading, contents, decode

LARGEST, BATCH, WORKERS = 224, 256, 4
LOOKED_AT = 32  # pictures by which the size is chosen


def share_of(count: int) -> float:
    """The share of so many pictures that is held out: about 1,000 of them, at least 2 % and at most 20 %."""
    return round(min(0.2, max(0.02, 1000 / max(count, 1))), 3)


def batch_of(count: int) -> int:
    """The batch size for so many training images: a power of two, at least 16 steps an epoch, from 8 to 256."""
    power = 2 ** max(3, (count // 16).bit_length() - 1)
    return max(1, min(BATCH, power, count or BATCH))


def workers() -> int:
    """How many processes decode: one for each processor that may be used, up to 4."""
    return min(WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def spread(files: Sequence[File], most: int = LOOKED_AT) -> list[File]:
    """So many of the files, evenly spread."""
    return list(files[:: max(1, -(-len(files) // most))])


def size_of(files: Sequence[File]) -> int:
    """The median of the pictures' shorter sides, rounded down to a multiple of 32, at most 224."""
    sides = []
    for file in spread(files):
        try:
            sides.append(min(Image.open(io.BytesIO(contents(file))).size))
        except Exception:  # a damaged picture, which is named when it is decoded
            continue
    side = int(median(sides)) if sides else LARGEST
    return min(LARGEST, side if side < 32 else side // 32 * 32)


def look(files: Sequence[File], reading: Reading) -> None:
    """Decodes a few pictures, so that values whose meaning is not clear are refused before anything is trained.

    Raises:
        InputError: what the values mean is not clear.
    """
    for file in spread(files, 8):
        try:
            decode(file, reading)
        except Damaged:
            continue
