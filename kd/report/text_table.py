"""A table of strings for the terminal, Markdown and the page, and the formatting of its numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from kd.report.statistics import Paired, Spread

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Rows of strings; the first column names the row, the others hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def rich(self, notes: bool = True) -> RichTable:
        """As a table for the terminal."""
        table = RichTable(
            title=self.title,
            caption="\n".join(self.notes) if notes else None,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
        )
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def markdown(self) -> str:
        """As Markdown, for a README or TensorBoard's text tab."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [" | ".join(map(escaped, row)) for row in (self.columns, rule, *self.rows)]
        notes = "".join(f"\n\n{escaped(note)}" for note in self.notes)
        return "\n".join(f"| {line} |" for line in lines) + notes


def escaped(text: str) -> str:
    """Text with the special characters of Markdown escaped."""
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text) if text.strip("-:") else text


def percent(value: Spread | float | None, digits: int = 2) -> str:
    """A share, or the mean and standard deviation of several, in percent, without a unit."""
    if value is None:
        return NONE
    if isinstance(value, Spread):
        tail = "" if value.std is None else f" \N{PLUS-MINUS SIGN} {100 * value.std:.{digits}f}"
        return f"{100 * value.mean:.{digits}f}{tail}"
    return f"{100 * value:.{digits}f}"


def share(value: float | None) -> str:
    """A share in whole percent; negative shares are written as ``< 0 %``."""
    return NONE if value is None else "< 0 %" if value < 0 else f"{100 * value:.0f} %"


def number(value: Spread | None, digits: int = 3) -> str:
    """A mean with its standard deviation."""
    if value is None:
        return NONE
    tail = "" if value.std is None else f" \N{PLUS-MINUS SIGN} {value.std:.{digits}f}"
    return f"{value.mean:.{digits}f}{tail}"


def count(value: int | float | None) -> str:
    """A count with the prefix k, M or G."""
    if value is None:
        return NONE
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:g}"


def interval(result: Paired | None) -> str:
    """A gain with its interval, in points."""
    if result is None:
        return NONE
    if result.low is None or result.high is None:
        return points(result.mean)
    return f"{points(result.mean)} [{points(result.low)}, {points(result.high)}]"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * share:+.2f}"
    return "0.00" if text.strip("+-") == "0.00" else text.replace("-", "\N{MINUS SIGN}")


def p_text(p: float | None) -> str:
    """A p value, such as ``p = 0.012``."""
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
