"""Numbers as text, for tables on the terminal and for cards."""

from __future__ import annotations

ABSENT = "-"


def percent(share: float | None) -> str:
    """A share in [0, 1] in percent."""
    return ABSENT if share is None else f"{100 * share:.2f} %"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many decimal places."""
    return ABSENT if value is None else f"{value:.{digits}f}"
