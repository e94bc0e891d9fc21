"""Writes benchmark results into docs/performance.md, between the markers ``<!-- NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Results = Mapping[str, Any]
AXES = {"batch": "batch", "classes": "classes", "pixels": "image size", "objective": "objective"}


def write_page(results: Results, page: Path) -> None:
    """Replaces the text between each ``<!-- NAME -->`` and ``<!-- end -->`` that has an entry in ``results``."""
    parts = {
        "machine": lambda: f"{results['machine']}.",
        "live": lambda: _steps(results["live"]) + _bounds(results["live"]),
        "cached": lambda: _steps(results["cached"]),
        "compiled": lambda: _steps(results["compiled"]),
        "lightning": lambda: _overhead(results),
        "growth": lambda: _growth(results["growth"]),
        "forwards": lambda: _forwards(results["forwards"]),
        "updates": lambda: ", ".join(f"{name} {row['ratio']:.2f}" for name, row in results["updates"].items()) + ".",
        "processes": lambda: ", ".join(f"{name} {rate:,.0f}" for name, rate in results["processes"].items()) + ".",
        "kl": lambda: _kl(results["kl"]),
        "startup": lambda: (
            f"`kd-train --help` takes {results['startup']['help_s']:.1f} s; the first training step of a run on the "
            f"digits ends {results['startup']['first_step_s']:.1f} s after the command starts."
        ),
    }
    text = page.read_text()
    for name, render in parts.items():
        if name in results:
            pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
            text = re.sub(pattern, lambda match, r=render: match[1] + r().strip() + match[2], text, flags=re.DOTALL)
    page.write_text(text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _named(pair: str, result: Results) -> str:
    return f"{pair.replace('->', ' → ')} ({result['batch']})"


def _steps(pairs: Results) -> str:
    names = list(dict.fromkeys(name for result in pairs.values() for name in result["steps"]))
    rows = []
    for name in names:
        cells = [_cell(name, result["steps"].get(name)) for result in pairs.values()]
        rows.append([name, *cells])
    return _table(["step", *(_named(pair, result) for pair, result in pairs.items())], rows)


def _cell(name: str, row: Results | None) -> str:
    if row is None:
        return ""
    if name == "bare":
        return f"1 ({row['ms']:.0f} ms)"
    return f"**{row['ratio']:.2f}** ({row['low']:.2f} to {row['high']:.2f})"


def _bounds(pairs: Results) -> str:
    kinds = {"float32": "default", "bfloat16": "bf16-mixed"}
    kinds = {kind: name for kind, name in kinds.items() if all(kind in result["floor_ms"] for result in pairs.values())}
    rows = []
    for pair, result in pairs.items():
        floor, steps, memory = result["floor_ms"], result["steps"], result["peak_mb"]
        times = " and ".join(f"{floor[kind]:.0f}" for kind in kinds)
        over = " and ".join(f"{steps[name]['ms'] / floor[kind]:.1f}" for kind, name in kinds.items())
        peaks = [f"{memory[name]:.0f}" for name in ("bare", "default", "recompute")]
        rows.append([_named(pair, result), f"{result['gflop']:.0f}", f"{times} ms", over, *peaks])
    head = ["pair (batch)", "GFLOP per step", f"time at the measured peak, {' and '.join(kinds)}"]
    head += [f"{' and '.join(kinds.values())} relative to it", "peak MB: bare", "default", "recompute"]
    return "\n" + _table(head, rows)


def _overhead(results: Results) -> str:
    over: dict[str, dict[str, float]] = {}
    for pair, name, row in (
        (pair, name, row)
        for group in ("live", "cached")
        for pair, result in results.get(group, {}).items()
        for name, row in result["steps"].items()
    ):
        if "over_own" in row:
            over.setdefault(name, {})[pair] = row["over_own"]
    pairs = list(dict.fromkeys(pair for row in over.values() for pair in row))
    rows = [[name, *(f"{row[pair]:.3f}" if pair in row else "" for pair in pairs)] for name, row in over.items()]
    small = f"For two perceptrons of width 8, the overhead is {results['lightning']['ms']:.1f} ms per step."
    return _table(["step", *(pair.replace("->", " → ") for pair in pairs)], rows) + f"\n{small}"


def _growth(results: Results) -> str:
    rows = []
    for axis, title in AXES.items():
        for value, row in results[axis].items():
            kd = f"{row['ms']:.1f} ms", f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            rows.append([f"{title} {value}", f"{row['bare']:.1f} ms", *kd])
    return _table([results["pair"].replace("->", " → "), "bare loop", "kd, live", "ratio"], rows)


def _forwards(results: Results) -> str:
    names = list(next(iter(results.values())))
    rows = [[name, *(_forward(result[name]) for result in results.values())] for name in names]
    return _table(["teacher's forward pass alone", *results], rows)


def _forward(row: Results) -> str:
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _kl(results: Results) -> str:
    rows = []
    for classes, row in results.items():
        ways = [f"{row[f'{way}_ms']:.2f} ms, {row[f'{way}_mb']:.1f} MB" for way in ("plain", "logs", "kd")]
        over = [row[f"kd_{what}"] / row[f"{way}_{what}"] for way in ("plain", "logs") for what in ("ms", "mb")]
        errors = " ".join(f"{row[f'{way}_gradient_error']:.0e}" for way in ("plain", "logs", "kd"))
        ratios = "{:.2f}, {:.2f}; {:.2f}, {:.2f}".format(*over)
        rows.append([f"128 x {int(classes):,}", *ways, ratios, errors])
    head = ["logits", "`kl_div(log_softmax, softmax)`", "`kl_div(..., log_target=True)`", "kd"]
    return _table([*head, "kd relative to the others: time, memory", "gradient errors"], rows)
