"""Counter-based random numbers: each is a pure function of seed, epoch, sample position and stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def hashed(seed: int, epoch: int | Tensor, index: Tensor, stream: int | Tensor = 0) -> Tensor:
    """Uniform integers in [0, 2^32), int64, one for each sample position in ``index`` (any shape).

    Two rounds of a multiply-xorshift integer hash over seed, epoch, stream and index, in 64-bit arithmetic without
    overflow, so that the numbers are the same on every device. ``epoch`` and ``stream`` may be tensors that broadcast
    with ``index``.
    """
    if torch.compiler.is_compiling() and not isinstance(epoch, Tensor):
        epoch = torch.full((), epoch, device=index.device)  # as a symbolic integer, its expression grows too large
    key = _salted(_salted(_salted(seed & MASK) ^ (epoch & MASK)) ^ (stream & MASK))
    x = (index.long() ^ key) & MASK
    return mix(mix(x) ^ key)


def below(count: int | Tensor, bits: Tensor) -> Tensor:
    """Uniform integers in [0, count) from uniform integers in [0, 2^32); ``count`` is at most 2^31."""
    return (bits * count) >> 32


def mix(x: Any) -> Any:
    """A multiply-xorshift hash of integers below 2^32 (int64 tensor or int), in 64 bits without overflow."""
    for factor, shift in ((0x7FEB352D, 15), (0x46EA6B5D, 13)):
        x = x ^ (x >> 16)
        x = (x * factor) & MASK
        x = x ^ (x >> shift)
    return x ^ (x >> 16)


def _salted(x: Any) -> Any:
    return mix((x + 0x9E3779B9) & MASK)


# streams; a new use of random numbers needs a new one
ORDER = 1  # sample order of an epoch
VIEW = 2  # crop and flip, or the choice among stored views
TRANSFORM = 3  # seed of per-sample transforms
STEP = 4  # seed of a training step, for dropout and the like
WEAK = 5  # crop and flip of a second view of the same image
BALANCE = 6  # which images of a class an epoch contains, with a balanced sampler
ERASE = 16  # from here, four for each kind of erasing: whether, size, row, column
MIX = 32  # from here: partner, kind, lambda, row, column
CROP = 48  # from here: size, row, column of the random resized crop
JITTER = 52  # from here: brightness, contrast, saturation

VIEWS = 0x7669  # seed of stored views, independent of the run's seed
