"""The report's charts: each function returns an inline SVG with its caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from kd.report.groups import Group
from kd.report.predictions import Reliability
from kd.report.statistics import Paired, Spread
from kd.report.svg import BAD, FAINT, GOOD, GRID, GROUND, INK, SCRATCH, SERIES, TEACHER, draw
from kd.report.text_table import count, points
from kd.report.verdicts import Gain

FEW = 10  # predictions in a confidence bin below which its accuracy is not drawn
Colours = Mapping[str, str]
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Chart:
    """An SVG with its caption; ``alt`` describes its content as text."""

    title: str
    alt: str
    svg: str
    note: str = ""


def colours(groups: Sequence[Group]) -> dict[str, str]:
    """Label to colour: grey for scratch, the colours of the series in turn for the methods."""
    methods = [group.label for group in groups if group.role == "student"]
    scratch = {group.label: SCRATCH for group in groups if group.role == "scratch"}
    return scratch | {label: SERIES[index % len(SERIES)] for index, label in enumerate(methods)}


def far_below(gains: Sequence[Gain]) -> set[str]:
    """Methods so far below scratch, such as a shuffled teacher's, that they would dominate the axis of a chart."""
    means = [(_reach(gain.paired), gain.paired.mean, gain.group.label) for gain in gains if gain.paired is not None]
    far, nearer = set(), 0.0
    for reach, mean, label in sorted(means):
        if nearer and mean < -5 * nearer:
            far.add(label)
        else:
            nearer = max(nearer, reach)
    return far


def forest(gains: Sequence[Gain], hues: Colours) -> Chart | None:
    """Each method's gain over scratch: a dot per seed, the mean, and the 95 % interval."""
    drawn = [gain for gain in gains if gain.paired is not None]
    far = far_below(gains)
    if not drawn:
        return None

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=FAINT, linewidth=1)
        for row, gain in enumerate(drawn):
            result, hue = gain.paired, hues.get(gain.group.label, INK)
            assert result is not None
            if gain.group.label in far:
                words = f"\N{LEFTWARDS ARROW} {points(result.mean)}"
                box = {"facecolor": GROUND, "edgecolor": "none", "pad": 1.5}
                axes.text(0.01, row, words, color=hue, va="center", transform=axes.get_yaxis_transform(), bbox=box)
                continue
            dots = 100 * np.asarray(result.differences)
            axes.plot(
                dots, np.full(len(dots), row + 0.24), "o", color=hue, markersize=3.4, alpha=0.55, markeredgewidth=0
            )
            if result.low is not None and result.high is not None:
                axes.plot([100 * result.low, 100 * result.high], [row, row], color=hue, linewidth=2.4)
            axes.plot([100 * result.mean], [row], "D", color=hue, markersize=6)
        axes.set_yticks(range(len(drawn)), [_short(gain.group.label) for gain in drawn])
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel("gain over scratch, points")

    alt = "; ".join(f"{gain.group.label}: {100 * gain.paired.mean:+.2f} points" for gain in drawn if gain.paired)
    note = "Diamond: mean. Bar: 95 % t interval, paired by seed. Dots: seeds. Left of the line, scratch is better."
    return Chart("", alt, draw(paint, height=0.9 + 0.45 * len(drawn)), note)


def curve(
    groups: Sequence[Group], key: str, words: str, hues: Colours, far: set[str], scale: float = 1.0
) -> Chart | None:
    """The mean of a validation score over epochs with a band of one standard deviation, except methods in ``far``."""
    near = [group for group in groups if group.label not in far]
    lines = {group.label: line for group in near if (line := _over_seeds(group, key)) is not None}
    if not lines or max(len(line[0]) for line in lines.values()) < 2:
        return None
    teacher = _over_seeds_of_teacher(groups) if key == "val/acc" else None

    def paint(axes: Axes) -> None:
        for label, (epochs, mean, std) in lines.items():
            hue = hues.get(label, INK)
            axes.fill_between(epochs, scale * (mean - std), scale * (mean + std), color=hue, alpha=0.16, linewidth=0)
            axes.plot(epochs, scale * mean, color=hue)
        if teacher is not None:
            axes.axhline(scale * teacher, color=TEACHER, linestyle=(0, (4, 3)), linewidth=1.2)
        late = np.concatenate([scale * mean[len(mean) // 8 :] for _, mean, _ in lines.values()])
        late = late if teacher is None else np.append(late, scale * teacher)
        margin = 0.06 * max(float(np.ptp(late)), 1e-6)
        axes.set_ylim(float(late.min()) - margin, float(late.max()) + margin)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))

    alt = f"{words} over epochs for {', '.join(lines)}"
    return Chart(words, alt, draw(paint))


def costs(networks: Sequence[tuple[str, float | None, Spread | None]], words: str, hues: Colours) -> Chart | None:
    """Accuracy against a cost on a logarithmic axis; bars are one standard deviation."""
    points = [(label, x, y) for label, x, y in networks if y and x and x > 0]
    if len({x for _, x, _ in points}) < 2:
        return None

    def paint(axes: Axes) -> None:
        axes.set_xscale("log")
        for index, (label, x, y) in enumerate(points):
            hue, mark = hues.get(label, TEACHER), "o" if label in hues else "s"
            same = [other for other, (_, cost, _) in enumerate(points) if cost == x]
            offset = ScaledTranslation((same.index(index) - (len(same) - 1) / 2) / 9, 0, axes.figure.dpi_scale_trans)
            shifted = axes.transData + offset
            bar: Any = {"fmt": "none", "ecolor": hue, "elinewidth": 1.4}
            axes.errorbar(x, 100 * y.mean, 100 * (y.std or 0), transform=shifted, **bar)
            axes.plot([x], [100 * y.mean], mark, color=hue, markersize=6, transform=shifted)
        marks = sorted({x for _, x, _ in points})
        margin = (marks[-1] / marks[0]) ** 0.2
        axes.set_xlim(marks[0] / margin, marks[-1] * margin)
        reach = [100 * (y.mean + sign * (y.std or 0)) for _, _, y in points for sign in (-1, 1)]
        axes.set_ylim(min(reach) - 0.1 * np.ptp(reach), max(reach) + 0.1 * np.ptp(reach))
        axes.set_xticks(marks, [count(x) for x in marks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"{words}, logarithmic")
        axes.set_ylabel("accuracy, %")

    alt = "; ".join(f"{label}: {100 * y.mean:.2f} % at {x:g}" for label, x, y in points)
    note = "Networks of equal cost are drawn side by side."
    return Chart(f"Accuracy against {words}", alt, draw(paint, height=2.6), note)


def calibration(label: str, bins: Reliability, hue: str, seeds: int) -> Chart:
    """A reliability diagram (Guo et al. 2017, arXiv:1706.04599): accuracy by confidence, and the size of each bin."""
    edges = np.linspace(0, 1, len(bins.count) + 1)[:-1]
    width = 1 / len(bins.count)
    share = bins.count / max(bins.count.max(), 1)

    def paint(axes: Axes) -> None:
        full = bins.count >= FEW
        axes.bar(edges[full], bins.accuracy[full], width, align="edge", color=hue, alpha=0.55, linewidth=0)
        axes.plot(bins.confidence[full], bins.accuracy[full], "o", color=hue, markersize=3)
        axes.bar(edges, -0.16 * share, width, align="edge", color=FAINT, alpha=0.5, linewidth=0)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.18, 1.02)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")

    note = f"ECE {bins.ece:.3f}" + (f", {seeds} seeds pooled" if seeds > 1 else "")
    return Chart(label, f"reliability of {label}: {note}", draw(paint, width=2.5, height=2.4), note)


def by_class(label: str, names: Sequence[str], gain: Array, std: Array | None, most: int = 10) -> Chart:
    """The gain of each class over scratch, largest first; with many classes, only the extremes."""
    order = [int(index) for index in np.argsort(-gain, kind="stable") if np.isfinite(gain[index])]
    cut = len(order) > 2 * most
    drawn = order[:most] + order[-most:] if cut else order

    def paint(axes: Axes) -> None:
        values = 100 * gain[drawn]
        hues = [GOOD if value >= 0 else BAD for value in values]
        axes.barh(range(len(drawn)), values, 0.68, color=hues, linewidth=0)
        if std is not None:
            axes.errorbar(values, range(len(drawn)), xerr=100 * std[drawn], fmt="none", ecolor=INK, elinewidth=0.9)
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(drawn)), [_short(names[index]) for index in drawn])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("gain over scratch, points")

    note = f"The {most} largest and the {most} smallest of {len(order)} classes." if cut else ""
    alt = "; ".join(f"{names[index]} {100 * gain[index]:+.1f}" for index in drawn)
    return Chart(label, alt, draw(paint, height=0.7 + 0.21 * len(drawn)), note)


def correlations(label: str, difference: Array, scale: float, names: Sequence[str]) -> Chart:
    """|corr(teacher's logits) - corr(student's logits)| between classes [C, C]; a stronger colour is a larger value."""

    def paint(axes: Axes) -> None:
        pixels = np.empty((*difference.shape, 4))
        pixels[...] = to_rgba("#2f6fdb")
        pixels[..., 3] = np.clip(difference / max(scale, 1e-9), 0, 1)
        axes.imshow(pixels, interpolation="none")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(GRID)
        few = len(names) <= 12 and max(map(len, names)) <= 12
        ticks: Any = range(len(names)) if few else []
        axes.set_yticks(ticks, names if few else [], fontsize=7.5)
        axes.set_xticks(ticks, names if few else [], fontsize=7.5, rotation=90 if max(map(len, names)) > 2 else 0)

    mean = float(difference.mean())
    return Chart(label, f"{label}: mean difference {mean:.3f}", draw(paint, 2.6, 2.6), f"mean {mean:.3f}")


def _reach(result: Paired) -> float:
    ends = [result.low, result.high] if result.low is not None and result.high is not None else []
    return max(abs(end) for end in (*ends, *result.differences) if end is not None)


def _over_seeds(group: Group, key: str) -> tuple[Array, Array, Array] | None:
    """Epochs that all seeds have, with mean and standard deviation of a score."""
    lines = [{row["epoch"]: row[key] for row in run.history if np.isfinite(row.get(key, np.nan))} for run in group.runs]
    lines = [line for line in lines if line]
    epochs = sorted(set.intersection(*map(set, lines))) if lines else []
    if not epochs:
        return None
    scores = np.asarray([[line[epoch] for epoch in epochs] for line in lines])
    std = scores.std(0, ddof=1) if len(scores) > 1 else np.zeros(len(epochs))
    return np.asarray(epochs), scores.mean(0), std


def _over_seeds_of_teacher(groups: Sequence[Group]) -> float | None:
    scores = [score for group in groups for score in group.scores("best", "teacher/acc").values()]
    return float(np.median(scores)) if scores else None


def _short(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
