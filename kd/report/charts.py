"""The report's charts. Each takes what ``groups``, ``verdicts`` and ``evidence`` found and gives an inline SVG."""

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
from kd.report.svg import BAD, FAINT, GOOD, GRID, INK, SCRATCH, SERIES, TEACHER, draw
from kd.report.text_table import count, points
from kd.report.verdicts import Gain

FEW = 10  # answers in a bin of confidence below which its accuracy is left out
Colours = Mapping[str, str]
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Picture:
    """An SVG with its caption; ``alt`` says in words what it shows."""

    title: str
    alt: str
    svg: str
    note: str = ""


def colours(groups: Sequence[Group]) -> dict[str, str]:
    """Label to colour: grey for scratch, the series' in turn for the methods."""
    methods = [group.label for group in groups if group.role == "student"]
    taken = {group.label: SCRATCH for group in groups if group.role == "scratch"}
    return taken | {label: SERIES[at % len(SERIES)] for at, label in enumerate(methods)}


def far_below(gains: Sequence[Gain]) -> set[str]:
    """Methods so far below scratch, such as a shuffled teacher's, that nothing else could be seen beside them."""
    known = [(_reach(gain.paired), gain.paired.mean, gain.group.label) for gain in gains if gain.paired is not None]
    far, nearer = set(), 0.0
    for reach, mean, label in sorted(known):
        if nearer and mean < -5 * nearer:
            far.add(label)
        else:
            nearer = max(nearer, reach)
    return far


def forest(gains: Sequence[Gain], hues: Colours) -> Picture | None:
    """Each method's gain over scratch: a dot for each seed, the mean, and the 95 % interval."""
    shown = [gain for gain in gains if gain.paired is not None]
    far = far_below(gains)
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=FAINT, linewidth=1)
        for at, gain in enumerate(shown):
            result, hue = gain.paired, hues.get(gain.group.label, INK)
            assert result is not None
            if gain.group.label in far:
                words = f"\N{LEFTWARDS ARROW} {points(result.mean)}"
                axes.text(0.01, at, words, color=hue, va="center", transform=axes.get_yaxis_transform())
                continue
            dots = 100 * np.asarray(result.differences)
            axes.plot(
                dots, np.full(len(dots), at + 0.24), "o", color=hue, markersize=3.4, alpha=0.55, markeredgewidth=0
            )
            if result.low is not None and result.high is not None:
                axes.plot([100 * result.low, 100 * result.high], [at, at], color=hue, linewidth=2.4)
            axes.plot([100 * result.mean], [at], "D", color=hue, markersize=6)
        axes.set_yticks(range(len(shown)), [_short(gain.group.label) for gain in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel("gain over scratch, points")

    alt = "; ".join(f"{gain.group.label}: {100 * gain.paired.mean:+.2f} points" for gain in shown if gain.paired)
    note = "Diamond: mean. Bar: 95 % t interval, paired by seed. Dots: seeds. Left of the line scratch is better."
    return Picture("", alt, draw(paint, height=0.9 + 0.45 * len(shown)), note)


def curve(
    groups: Sequence[Group], key: str, words: str, hues: Colours, far: set[str], scale: float = 1.0
) -> Picture | None:
    """The mean of a validation score over epochs, with a band of one deviation over seeds; not of those ``far``."""
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
        room = 0.06 * max(float(np.ptp(late)), 1e-6)
        axes.set_ylim(float(late.min()) - room, float(late.max()) + room)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))

    alt = f"{words} over epochs for {', '.join(lines)}"
    return Picture(words, alt, draw(paint))


def costs(networks: Sequence[tuple[str, float | None, Spread | None]], words: str, hues: Colours) -> Picture | None:
    """Accuracy against a cost, on a logarithmic axis; bars are one standard deviation."""
    known = [(label, x, y) for label, x, y in networks if y and x and x > 0]
    if len({x for _, x, _ in known}) < 2:
        return None

    def paint(axes: Axes) -> None:
        axes.set_xscale("log")
        for at, (label, x, y) in enumerate(known):
            hue, mark = hues.get(label, TEACHER), "o" if label in hues else "s"
            same = [other for other, (_, cost, _) in enumerate(known) if cost == x]
            aside = ScaledTranslation((same.index(at) - (len(same) - 1) / 2) / 9, 0, axes.figure.dpi_scale_trans)
            where = axes.transData + aside
            axes.errorbar(x, 100 * y.mean, 100 * (y.std or 0), fmt="none", ecolor=hue, elinewidth=1.4, transform=where)
            axes.plot([x], [100 * y.mean], mark, color=hue, markersize=6, transform=where)
        marks = sorted({x for _, x, _ in known})
        room = (marks[-1] / marks[0]) ** 0.2
        axes.set_xlim(marks[0] / room, marks[-1] * room)
        reach = [100 * (y.mean + sign * (y.std or 0)) for _, _, y in known for sign in (-1, 1)]
        axes.set_ylim(min(reach) - 0.1 * np.ptp(reach), max(reach) + 0.1 * np.ptp(reach))
        axes.set_xticks(marks, [count(x) for x in marks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"{words}, logarithmic")
        axes.set_ylabel("accuracy, %")

    alt = "; ".join(f"{label}: {100 * y.mean:.2f} % at {x:g}" for label, x, y in known)
    note = "Networks of the same cost stand side by side."
    return Picture(f"Accuracy against {words}", alt, draw(paint, height=2.6), note)


def calibration(label: str, found: Reliability, hue: str, seeds: int) -> Picture:
    """A reliability diagram (Guo et al. 2017, arXiv:1706.04599): accuracy by confidence, and how many answers."""
    edges = np.linspace(0, 1, len(found.count) + 1)[:-1]
    width = 1 / len(found.count)
    share = found.count / max(found.count.max(), 1)

    def paint(axes: Axes) -> None:
        shown = found.count >= FEW
        axes.bar(edges[shown], found.accuracy[shown], width, align="edge", color=hue, alpha=0.55, linewidth=0)
        axes.plot(found.confidence[shown], found.accuracy[shown], "o", color=hue, markersize=3)
        axes.bar(edges, -0.16 * share, width, align="edge", color=FAINT, alpha=0.5, linewidth=0)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.18, 1.02)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")

    note = f"ECE {found.ece:.3f}" + (f", {seeds} seeds pooled" if seeds > 1 else "")
    return Picture(label, f"reliability of {label}: {note}", draw(paint, width=2.5, height=2.4), note)


def by_class(label: str, names: Sequence[str], gain: Array, std: Array | None, most: int = 10) -> Picture:
    """The gain of each class over scratch, largest first; of many classes the ends only."""
    order = [int(at) for at in np.argsort(-gain, kind="stable") if np.isfinite(gain[at])]
    cut = len(order) > 2 * most
    shown = order[:most] + order[-most:] if cut else order

    def paint(axes: Axes) -> None:
        values = 100 * gain[shown]
        hues = [GOOD if value >= 0 else BAD for value in values]
        axes.barh(range(len(shown)), values, 0.68, color=hues, linewidth=0)
        if std is not None:
            axes.errorbar(values, range(len(shown)), xerr=100 * std[shown], fmt="none", ecolor=FAINT, elinewidth=0.9)
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(shown)), [_short(names[at]) for at in shown])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("gain over scratch, points")

    note = f"The {most} largest and the {most} smallest of {len(order)} classes." if cut else ""
    alt = "; ".join(f"{names[at]} {100 * gain[at]:+.1f}" for at in shown)
    return Picture(label, alt, draw(paint, height=0.7 + 0.21 * len(shown)), note)


def correlations(label: str, difference: Array, scale: float, names: Sequence[str]) -> Picture:
    """|corr(teacher's logits) - corr(student's logits)| between classes [C, C], stronger is further apart."""

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
    return Picture(label, f"{label}: mean difference {mean:.3f}", draw(paint, 2.6, 2.6), f"mean {mean:.3f}")


def _reach(result: Paired) -> float:
    ends = [result.low, result.high] if result.low is not None and result.high is not None else []
    return max(abs(end) for end in (*ends, *result.differences) if end is not None)


def _over_seeds(group: Group, key: str) -> tuple[Array, Array, Array] | None:
    """Mean and standard deviation at the epochs that all seeds have."""
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
