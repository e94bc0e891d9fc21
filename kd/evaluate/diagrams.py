"""The diagrams of an evaluation: reliability and confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kd.files import atomic

BLUE, PINK, GREY = "#3b6fb6", "#e5a3a5", "#8a8a8a"


def reliability(bins: Mapping[str, Any], ece: float, path: Path) -> None:
    """Accuracy against confidence in each bin, with the share of images below (Guo et al. 2017, arXiv:1706.04599).

    ``bins`` holds ``edges`` (one more than there are bins) and, for each bin, ``count``, ``confidence`` and
    ``accuracy``; the latter two are None for an empty bin.
    """
    figure = Figure(figsize=(4.5, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges, counts = bins["edges"], bins["count"]
    width, starts, total = edges[1] - edges[0], edges[:-1], max(sum(counts), 1)
    for start, confidence, accuracy in zip(starts, bins["confidence"], bins["accuracy"]):
        if confidence is not None:
            low, gap = min(confidence, accuracy), abs(confidence - accuracy)
            top.bar(start, low, width, align="edge", color=BLUE, edgecolor="white")
            top.bar(start, gap, width, bottom=low, align="edge", color=PINK, edgecolor="white", hatch="//")
            top.hlines(accuracy, start, start + width, color="black", lw=1.5)
    top.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
    top.set(ylim=(0, 1), ylabel="accuracy (black line)", title=f"reliability, ECE {100 * ece:.2f} %")
    bottom.bar(starts, [count / total for count in counts], width, align="edge", color=GREY, edgecolor="white")
    bottom.set(xlim=(0, 1), xlabel="confidence (hatched: its distance from accuracy)", ylabel="share of images")
    _save(figure, path)


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """The share of each true class (row) that is predicted as each class (column)."""
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    few = len(names) <= 30
    side = 2.2 + 0.32 * len(names) if few else 7.0
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, shrink=0.8, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if few:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, row_counts in enumerate(counts):
            for column, count in enumerate(row_counts):
                if count:
                    colour = "white" if shares[row][column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
