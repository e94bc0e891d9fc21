"""Validation accuracy over T and alpha: a heat map for a grid, a scatter plot for a search."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from kd.report.charts import Chart
from kd.report.svg import INK, SERIES, draw
from kd.report.verdicts import Sweep


def search(sweep: Sweep) -> Chart:
    """A scatter plot: a stronger colour is a higher validation accuracy; the best setting has a ring."""
    scores = {setting: group.spread("best", "val/acc") for setting, group in sweep.cells.items()}
    means = {setting: score.mean for setting, score in scores.items() if score}
    low, reach = min(means.values()), max(max(means.values()) - min(means.values()), 1e-9)

    def paint(axes: Axes) -> None:
        for (T, alpha), mean in means.items():
            strength = 0.08 + 0.92 * (mean - low) / reach
            axes.plot([alpha], [T], "o", color=SERIES[0], alpha=strength, markersize=9, markeredgewidth=0)
            if sweep.cells[T, alpha] is sweep.best:
                axes.plot([alpha], [T], "o", markerfacecolor="none", markeredgecolor=INK, markersize=13)
                words = f"{100 * mean:.2f}"
                axes.annotate(words, (alpha, T), (0, 10), textcoords="offset points", ha="center", color=INK)
        axes.margins(0.1)
        axes.set_xlabel("alpha")
        axes.set_ylabel("T", rotation=0, labelpad=8)

    best = sweep.best.recipe
    setting = f"best at T={best['T']:g}, alpha={best['alpha']:g}"
    alt = f"validation accuracy of {sweep.base} over {len(means)} settings, {setting}"
    values = f"from {100 * low:.2f} to {100 * (low + reach):.2f}"
    note = f"A stronger colour is higher, {values}. The ring marks the best setting."
    return Chart(f"{sweep.base}: validation accuracy, %", alt, draw(paint), note)


def heat(sweep: Sweep) -> Chart:
    """A heat map of validation accuracy; the best setting has a frame."""
    temperatures = sorted({T for T, _ in sweep.cells})
    alphas = sorted({alpha for _, alpha in sweep.cells})
    scores = {setting: group.spread("best", "val/acc") for setting, group in sweep.cells.items()}
    means = [score.mean for score in scores.values() if score]
    low, reach = min(means), max(max(means) - min(means), 1e-9)

    def paint(axes: Axes) -> None:
        for (T, alpha), score in scores.items():
            x, y = alphas.index(alpha), temperatures.index(T)
            if score is None:
                continue
            strength = 0.06 + 0.5 * (score.mean - low) / reach
            axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=SERIES[0], alpha=strength, linewidth=0))
            best = sweep.cells[T, alpha] is sweep.best
            axes.text(
                x, y, f"{100 * score.mean:.2f}", ha="center", va="center" if score.std is None else "bottom", color=INK
            )
            if score.std is not None:
                axes.text(x, y + 0.06, f"\N{PLUS-MINUS SIGN}{100 * score.std:.2f}", ha="center", va="top", fontsize=7.5)
            if best:
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, edgecolor=INK, linewidth=1.6))
        axes.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axes.set_yticks(range(len(temperatures)), [f"{T:g}" for T in temperatures])
        axes.set_xlim(-0.55, len(alphas) - 0.45)
        axes.set_ylim(len(temperatures) - 0.45, -0.55)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("alpha")
        axes.set_ylabel("T", rotation=0, labelpad=8)

    best = sweep.best.recipe
    alt = f"validation accuracy of {sweep.base} over T and alpha, best at T={best['T']:g}, alpha={best['alpha']:g}"
    width = min(1.4 + 0.8 * len(alphas), 6.5)
    svg = draw(paint, width=max(width, 3.2), height=0.8 + 0.5 * len(temperatures))
    return Chart(f"{sweep.base}: validation accuracy, %", alt, svg, "The frame marks the best setting.")
