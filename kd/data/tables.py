"""Tables of pictures and their classes: csv files of path and label, and Tiny-ImageNet's annotations."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from kd.data.decode import printable
from kd.data.scan import extensions
from kd.errors import InputError

WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
KINDS = (".csv", ".tsv", ".txt")
LABELS = ("label", "labels", "class", "class_name", "target", "category", "y")
SPLITS = ("split", "set", "subset", "partition", "part", "phase")  # columns that say which part a row belongs to
TRIED = 20  # rows by which the column of paths is found
Rows = list[tuple[int, list[str]]]  # number of the line, cells
Pairs = list[tuple[str, str]]  # path of a picture, name of its class


class Table(NamedTuple):
    """The pictures that a csv file names, with their classes; how many rows came twice, or are of other parts."""

    pairs: Pairs
    again: int
    others: int


def table(path: Path, root: Path, part: str = "train") -> Table:
    """What a csv file says of one of the parts; of all rows, unless a column ``split`` gives each to a part.

    Comma, semicolon or tab; with or without a header. Paths are taken from the file's folder, from ``root``, or from
    the folder of the file's name beside it; with either kind of slash, and with or without their extension.

    Raises:
        InputError: it cannot be read, columns that are not clear, absent pictures, or two labels of one picture.
    """
    rows = _rows(path)
    bases = (path.parent, root, path.with_suffix(""))
    first, of_path, of_label = _columns(path, rows, bases)
    own = _rows_of(part, path, rows, first)
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    absent, again = [], 0
    for number, row in own:
        if len(row) <= max(of_path, of_label) or not row[of_label].strip():
            raise InputError(f"{printable(path)} line {number} has no label: {','.join(row)[:60]!r}")
        place, label = _located(row[of_path], bases), _name(row[of_label].strip())
        if place is None:
            absent.append(f"{printable(row[of_path])} (line {number})")
        elif found.setdefault(place, label) != label:
            twice = f"lines {lines[place]} and {number}: {found[place]!r} and {label!r}"
            raise InputError(f"{printable(path)} gives {printable(row[of_path])} two labels, {twice}")
        else:
            again += place in lines
            lines.setdefault(place, number)
    if absent:
        raise InputError(f"{len(absent)} pictures of {printable(path)} are absent, first {absent[0]}")
    return Table(list(found.items()), again, len(rows) - first - len(own))


def _rows_of(part: str, path: Path, rows: Rows, first: int) -> Rows:
    """The rows of a part, where a column gives each row to one; else all of them."""
    names = [cell.strip().lower() for cell in rows[0][1]] if first else []
    for at in (names.index(word) for word in SPLITS if word in names):
        parts = [part_of(row[at]) if len(row) > at else None for _, row in rows[first:]]
        if None in parts or len(set(parts)) == 1:
            continue
        own = [row for row, its in zip(rows[first:], parts) if its == part]
        if not own:
            there = ", ".join(sorted({row[at].strip() for _, row in rows[first:]}))
            raise InputError(f"{printable(path)} has no row of the part {part}: its column {names[at]} has {there}")
        return own
    return rows[first:]


def part_of(word: str) -> str | None:
    """The part that is called so; None if none is."""
    return next((part for part, words in WORDS.items() if word.strip().lower() in words), None)


def annotated(folder: Path, file: str) -> Pairs:
    """The pictures and classes of Tiny-ImageNet's validation part.

    Raises:
        InputError: its file is damaged.
    """
    path = folder / file
    found = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        label = rest.split("\t")[0]
        if not name or not label:
            raise InputError(f"{path} line {number} is not FILE, tab, CLASS: {line[:60]!r}")
        found.append((str(folder / "images" / name), label))
    if not found:
        raise InputError(f"{path} is empty")
    return found


def _rows(path: Path) -> Rows:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        comma = max(",;\t", key=first.count)
        reader = csv.reader(text.splitlines(), delimiter=comma, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{printable(path)} cannot be read as csv: {error}") from error
    if not rows:
        raise InputError(f"{printable(path)} is empty: each line is to be PATH,LABEL")
    if len(rows[0][1]) < 2:
        raise InputError(f"{printable(path)} has one column, {rows[0][1][0][:60]!r}: each line is to be PATH,LABEL")
    return rows


def _columns(path: Path, rows: Rows, bases: Sequence[Path]) -> tuple[int, int, int]:
    """The first row that is no header, and the columns of paths and of labels."""
    some = [row for _, row in rows[: TRIED + 1]]
    width = len(some[0])
    hits = [sum(len(row) > at and _located(row[at], bases) is not None for row in some) for at in range(width)]
    of_path = max(range(width), key=hits.__getitem__)
    if not hits[of_path]:
        example = ",".join(some[-1])[:60]
        raise InputError(
            f"{printable(path)} names no picture below {printable(path.parent)} in its first rows, as {example!r}: "
            "each line is to be PATH,LABEL, with paths from the file's folder or from data.root"
        )
    headed = _located(some[0][of_path], bases) is None and len(some) > 1 and not _is_picture(some[0][of_path])
    names = [cell.strip().lower() for cell in some[0]] if headed else []
    others = [at for at in range(width) if at != of_path]
    called = [names.index(word) for word in LABELS if word in names]
    if len(others) != 1 and not called:
        raise InputError(
            f"{printable(path)} has {width} columns, {', '.join(some[0])[:80]}: keep two, the path and the label, or "
            f"call the label's one {' or '.join(LABELS[:3])} in a first line"
        )
    return int(headed), of_path, called[0] if called else others[0]


def _located(cell: str, bases: Sequence[Path]) -> str | None:
    """The picture that a cell names."""
    for path in _spellings(cell.strip()):
        for base in bases:
            place = os.path.join(base, path)
            if os.path.isfile(place):
                return place
    return None


def _spellings(cell: str) -> Iterator[str]:
    if not cell or "\0" in cell:
        return
    forward = PureWindowsPath(cell).as_posix() if "\\" in cell else cell
    if os.path.splitext(cell)[1]:
        yield cell
        yield forward
    yield from (forward + kind for kind in extensions())


def _name(label: str) -> str:
    """The class of a label: ``3.0``, as spreadsheets write numbers, is ``3``."""
    return re.sub(r"\.0+$", "", label) if re.fullmatch(r"\d+\.0+", label) else label


def _is_picture(cell: str) -> bool:
    return os.path.splitext(cell.strip())[1].lower() in extensions()
