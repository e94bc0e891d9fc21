"""How element-wise terms [B, C] become a number: torch's four reductions, in nats or bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from kd.errors import InputError, unknown
from kd.losses._checks import check_choice, check_positive

REDUCTIONS = ("batchmean", "mean", "sum", "none")
UNITS = ("nats", "bits")


def reduce(terms: Tensor, reduction: str = "batchmean", unit: str = "nats") -> Tensor:
    """Reduces ``terms`` [B, C] of a divergence, computed with the natural logarithm.

    ``batchmean`` sums over everything and divides by B, which is the mathematical mean over samples.
    ``mean`` divides by B * C: C times too small, named because published code uses it. ``sum`` divides by
    nothing and ``none`` returns [B, C].

    Raises:
        InputError: an unknown reduction or unit, or terms without a batch dimension, which ``batchmean``
            would silently divide by C.
    """
    if terms.ndim < 2:
        raise InputError(f"a divergence needs [B, C] tensors, got shape {list(terms.shape)}")
    if unit == "bits":
        terms = terms / math.log(2)
    elif unit != "nats":
        raise unknown("unit", unit, UNITS)
    if reduction == "batchmean":
        return terms.sum() / terms.shape[0]
    if reduction == "mean":
        return terms.mean()
    if reduction == "sum":
        return terms.sum()
    if reduction == "none":
        return terms
    raise unknown("reduction", reduction, REDUCTIONS)


def reduce_sum(total: Tensor, shape: Sequence[int], reduction: str = "batchmean", unit: str = "nats") -> Tensor:
    """As :func:`reduce`, for terms of this ``shape`` whose sum is ``total``; without ``none``."""
    check(reduction, unit)
    counts = {"batchmean": shape[0], "mean": math.prod(shape), "sum": 1}
    return total / (counts[reduction] * (math.log(2) if unit == "bits" else 1.0))


def check(reduction: str, unit: str = "nats", **positive: float) -> None:
    """Refuses an unknown reduction or unit, and numbers that must be finite and above 0."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("unit", unit, UNITS)
    check_positive(**positive)
