"""An integer hash on tensors: random numbers that are computed and not remembered, equal on every device."""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def hashed(seed: int, epoch: int, index: Tensor, stream: int = 0) -> Tensor:
    """Uniform integers in [0, 2^32) as int64, one for each sample position in ``index`` (any shape).

    Two rounds of a multiply-xorshift integer hash over seed, epoch, stream and index, in 64-bit arithmetic
    that no product overflows, so that every device gives the same numbers.
    """
    key = _mix_int(_mix_int(_mix_int(seed & MASK) ^ (epoch & MASK)) ^ (stream & MASK))
    x = (index.long() ^ key) & MASK
    return mix(mix(x) ^ key)


def mix(x: Tensor) -> Tensor:
    """A multiply-xorshift hash of integers below 2^32, in 64 bits that no product overflows."""
    for factor, shift in ((0x7FEB352D, 15), (0x46EA6B5D, 13)):
        x = x ^ (x >> 16)
        x = (x * factor) & MASK
        x = x ^ (x >> shift)
    return x ^ (x >> 16)


def _mix_int(x: int) -> int:
    return int(mix(torch.tensor((x + 0x9E3779B9) & MASK)))
