"""Counter-based random numbers: each is a function of a seed, a stream and positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def hashed(seed: int, epoch: int | Tensor, index: Tensor, stream: int | Tensor = 0) -> Tensor:
    """Uniform integers in [0, 2^32) as int64, one for each sample position in ``index`` (any shape).

    Two rounds of a multiply-xorshift integer hash over seed, epoch, stream and index, in 64-bit arithmetic
    without overflow, so that every device gives the same numbers. ``epoch`` and ``stream`` may be
    tensors that broadcast with ``index``.
    """
    if torch.compiler.is_compiling() and not isinstance(epoch, Tensor):
        epoch = torch.full((), epoch, device=index.device)  # as a symbol, its expression would grow too large
    key = _salted(_salted(_salted(seed & MASK) ^ (epoch & MASK)) ^ (stream & MASK))
    x = (index.long() ^ key) & MASK
    return mix(mix(x) ^ key)


def below(count: int | Tensor, bits: Tensor) -> Tensor:
    """Uniform integers in [0, count) out of uniform integers in [0, 2^32); ``count`` is at most 2^31."""
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


# streams
ORDER = 1  # of an epoch
VIEW = 2  # the crop and flip, or which of the stored views
TRANSFORM = 3  # the seed of transforms that run sample by sample
STEP = 4  # the seed of a training step: dropout and the like
WEAK = 5  # the crop and flip of a second view of the same image
BALANCE = 6  # which of a class's images an epoch contains, if classes are balanced
ERASE = 16  # and up, four for each kind of erasing: whether, size, row, column
MIX = 32  # and up: partner, kind, lambda, row, column
CROP = 48  # and up: size, row, column of the random resized crop
JITTER = 52  # and up: brightness, contrast, saturation
VIEWS = 0x7669  # the seed of stored views, independent of the run's seed
