"""Defaults of the options of image files, derived from the data."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from statistics import median

from PIL import Image

from kd.data.decode import Damaged, File, Reading, contents, decode

LARGEST, BATCH, WORKERS = 224, 256, 4
SAMPLED = 32  # images that determine the size


def share_of(count: int) -> float:
    """The fraction of ``count`` images to hold out: about 1,000 images, at least 2 % and at most 20 %."""
    return round(min(0.2, max(0.02, 1000 / max(count, 1))), 3)


def batch_of(count: int) -> int:
    """The batch size for ``count`` training images: a power of two from 8 to 256 with at least 16 steps per epoch."""
    power = 2 ** max(3, (count // 16).bit_length() - 1)
    return max(1, min(BATCH, power, count or BATCH))


def workers() -> int:
    """Number of decoding processes: one per available CPU, at most 4."""
    return min(WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def spread(files: Sequence[File], most: int = SAMPLED) -> list[File]:
    """At most ``most`` of the files, evenly spread."""
    return list(files[:: max(1, -(-len(files) // most))])


def size_of(files: Sequence[File]) -> int:
    """The median of the images' shorter sides, rounded down to a multiple of 32, at most 224."""
    sides = []
    for file in spread(files):
        try:
            sides.append(min(Image.open(io.BytesIO(contents(file))).size))
        except Exception:  # a damaged image, reported when it is decoded
            continue
    side = int(median(sides)) if sides else LARGEST
    return min(LARGEST, side if side < 32 else side // 32 * 32)


def check_values(files: Sequence[File], reading: Reading) -> None:
    """Decodes a few images, so that an ambiguous white level is refused before training.

    Raises:
        InputError: an ambiguous white level.
    """
    for file in spread(files, 8):
        try:
            decode(file, reading)
        except Damaged:
            continue
