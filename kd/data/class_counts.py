"""Number of images per class and part, printed when a run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kd.data.decode import File

MAX_ROWS = 30  # classes in the table; of more classes, only the smallest and the largest are named


def account(parts: Mapping[str, Sequence[File]], names: Sequence[str]) -> list[str]:
    """A table of the number of images of each class in each part; a summary if there are many classes."""
    counts = {part: _counts(files, len(names)) for part, files in parts.items()}
    if len(names) > MAX_ROWS:
        return [
            f"classes: {', '.join(names[:5])}, ..., {names[-1]}",
            *(_extremes(part, each, names) for part, each in counts.items()),
        ]
    width = max(map(len, (*names, "class")))
    columns = {part: max(len(part), len(f"{max(each, default=0):,}")) for part, each in counts.items()}
    head = "  ".join([f"{'class':{width}}", *(f"{part:>{size}}" for part, size in columns.items())])
    rows = [
        "  ".join([f"{name:{width}}", *(f"{counts[part][label]:>{size},}" for part, size in columns.items())])
        for label, name in enumerate(names)
    ]
    return [head, *rows]


def _counts(files: Sequence[File], classes: int) -> list[int]:
    counts = [0] * classes
    for file in files:
        if file.label >= 0:
            counts[file.label] += 1
    return counts


def _extremes(part: str, counts: Sequence[int], names: Sequence[str]) -> str:
    least, most = min(counts), max(counts)
    smallest, largest = names[counts.index(least)], names[counts.index(most)]
    return f"{part}: {least:,} ({smallest}) to {most:,} ({largest}) images per class"
