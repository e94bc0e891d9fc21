"""Checks of a loss's options."""

from __future__ import annotations

import math
from collections.abc import Collection

from kd.errors import InputError, unknown

VARIANTS = ("code", "paper")


def check_positive(**numbers: float) -> None:
    """Refuses numbers that are not finite or not above 0."""
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be a finite number above 0, got {value}")


def check_not_negative(**numbers: float) -> None:
    """Refuses numbers that are not finite or below 0."""
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must be a finite number of at least 0, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuses a value that is not among the choices of an option."""
    if value not in choices:
        raise unknown(name, value, choices)
