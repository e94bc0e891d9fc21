"""Tables of images and their classes: csv files of path and label, and Tiny-ImageNet's annotations."""

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
SPLITS = ("split", "set", "subset", "partition", "part", "phase")  # columns that assign rows to parts
TRIED = 20  # rows that are searched for the column of paths
Rows = list[tuple[int, list[str]]]  # number of the line, cells
Pairs = list[tuple[str, str]]  # path of an image, name of its class


class Table(NamedTuple):
    """The images in a csv file with their classes, and the numbers of duplicate rows and of rows of other parts."""

    pairs: Pairs
    duplicates: int
    others: int


def table(path: Path, root: Path, part: str = "train") -> Table:
    """The rows of a csv file for one of the parts: all rows, unless a column ``split`` assigns each to a part.

    The delimiter is comma, semicolon or tab; a header is optional. Paths are relative to the file's folder, to
    ``root``, or to the folder next to the file with the file's name; with either kind of slash, and with or without
    extension.

    Raises:
        InputError: an unreadable file, ambiguous columns, missing images, or two labels of one image.
    """
    rows = _rows(path)
    bases = (path.parent, root, path.with_suffix(""))
    first, of_path, of_label = _columns(path, rows, bases)
    part_rows = _rows_of(part, path, rows, first)
    images: dict[str, str] = {}
    lines: dict[str, int] = {}
    absent, duplicates = [], 0
    for number, row in part_rows:
        if len(row) <= max(of_path, of_label) or not row[of_label].strip():
            raise InputError(f"{printable(path)} line {number} has no label: {','.join(row)[:60]!r}")
        image, label = _image_path(row[of_path], bases), _name(row[of_label].strip())
        if image is None:
            absent.append(f"{printable(row[of_path])} (line {number})")
        elif images.setdefault(image, label) != label:
            twice = f"lines {lines[image]} and {number}: {images[image]!r} and {label!r}"
            raise InputError(f"{printable(path)} gives {printable(row[of_path])} two labels, {twice}")
        else:
            duplicates += image in lines
            lines.setdefault(image, number)
    if absent:
        raise InputError(f"{len(absent)} images in {printable(path)} do not exist, first {absent[0]}")
    return Table(list(images.items()), duplicates, len(rows) - first - len(part_rows))


def _rows_of(part: str, path: Path, rows: Rows, first: int) -> Rows:
    """The rows of a part, if a column assigns each row to one; otherwise all of them."""
    names = [cell.strip().lower() for cell in rows[0][1]] if first else []
    for column in (names.index(word) for word in SPLITS if word in names):
        parts = [part_of(row[column]) if len(row) > column else None for _, row in rows[first:]]
        if None in parts or len(set(parts)) == 1:
            continue
        part_rows = [row for row, part_of_row in zip(rows[first:], parts) if part_of_row == part]
        if not part_rows:
            values = ", ".join(sorted({row[column].strip() for _, row in rows[first:]}))
            raise InputError(
                f"{printable(path)} has no row of the {part} part: its column {names[column]} has {values}"
            )
        return part_rows
    return rows[first:]


def part_of(word: str) -> str | None:
    """The part with this name; None if there is none."""
    return next((part for part, words in WORDS.items() if word.strip().lower() in words), None)


def annotated(folder: Path, file: str) -> Pairs:
    """The images and classes of Tiny-ImageNet's validation part.

    Raises:
        InputError: its file is damaged.
    """
    path = folder / file
    images = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        name, _, remainder = line.partition("\t")
        label = remainder.split("\t")[0]
        if not name or not label:
            raise InputError(f"{path} line {number} is not FILE, tab, CLASS: {line[:60]!r}")
        images.append((str(folder / "images" / name), label))
    if not images:
        raise InputError(f"{path} is empty")
    return images


def _rows(path: Path) -> Rows:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{printable(path)} cannot be read as csv: {error}") from error
    if not rows:
        raise InputError(f"{printable(path)} is empty: each line must be PATH,LABEL")
    if len(rows[0][1]) < 2:
        raise InputError(f"{printable(path)} has one column, {rows[0][1][0][:60]!r}: each line must be PATH,LABEL")
    return rows


def _columns(path: Path, rows: Rows, bases: Sequence[Path]) -> tuple[int, int, int]:
    """The index of the first row after the header, and the columns of paths and of labels."""
    first_rows = [row for _, row in rows[: TRIED + 1]]
    columns = len(first_rows[0])
    matches = [
        sum(len(row) > column and _image_path(row[column], bases) is not None for row in first_rows)
        for column in range(columns)
    ]
    of_path = max(range(columns), key=matches.__getitem__)
    if not matches[of_path]:
        example = ",".join(first_rows[-1])[:60]
        raise InputError(
            f"{printable(path)} has no existing image below {printable(path.parent)} in its first rows, for example "
            f"{example!r}: each line must be PATH,LABEL, with paths relative to the file's folder or to data.root"
        )
    has_header = (
        _image_path(first_rows[0][of_path], bases) is None
        and len(first_rows) > 1
        and not _is_image(first_rows[0][of_path])
    )
    names = [cell.strip().lower() for cell in first_rows[0]] if has_header else []
    other_columns = [column for column in range(columns) if column != of_path]
    label_columns = [names.index(word) for word in LABELS if word in names]
    if len(other_columns) != 1 and not label_columns:
        raise InputError(
            f"{printable(path)} has {columns} columns, {', '.join(first_rows[0])[:80]}: keep two, the path "
            f"and the label, or name the label column {' or '.join(LABELS[:3])} in a header line"
        )
    return int(has_header), of_path, label_columns[0] if label_columns else other_columns[0]


def _image_path(cell: str, bases: Sequence[Path]) -> str | None:
    """The path of the image in a cell; None if there is no such file."""
    for path in _spellings(cell.strip()):
        for base in bases:
            image = os.path.join(base, path)
            if os.path.isfile(image):
                return image
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
    """The class of a label; ``3.0``, as spreadsheets write numbers, is ``3``."""
    return re.sub(r"\.0+$", "", label) if re.fullmatch(r"\d+\.0+", label) else label


def _is_image(cell: str) -> bool:
    return os.path.splitext(cell.strip())[1].lower() in extensions()
