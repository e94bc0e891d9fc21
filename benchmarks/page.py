"""Writes a benchmark's figures into the page that explains them, between its markers ``<!-- NAME -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Known = Mapping[str, Any]
AXES = {"batch": "batch", "classes": "classes", "pixels": "pixels, each way", "objective": "objective"}


def write_page(known: Known, page: Path) -> None:
    """Replaces what stands between each ``<!-- NAME -->`` and ``<!-- end -->`` of a page, where there are figures."""
    parts = {
        "machine": lambda: f"{known['machine']}.",
        "live": lambda: _steps(known["live"]) + _bounds(known["live"]),
        "cached": lambda: _steps(known["cached"]),
        "compiled": lambda: _steps(known["compiled"]),
        "lightning": lambda: _overhead(known),
        "growth": lambda: _growth(known["growth"]),
        "forwards": lambda: _forwards(known["forwards"]),
        "updates": lambda: ", ".join(f"{name} {row['ratio']:.2f}" for name, row in known["updates"].items()) + ".",
        "processes": lambda: ", ".join(f"{name} {rate:,.0f}" for name, rate in known["processes"].items()) + ".",
        "kl": lambda: _kl(known["kl"]),
        "startup": lambda: (
            f"`kd-train --help` takes {known['startup']['help_s']:.1f} s, the first step of a run on the digits is "
            f"done {known['startup']['first_step_s']:.1f} s after the command."
        ),
    }
    text = page.read_text()
    for name, render in parts.items():
        if name in known:
            pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
            text = re.sub(pattern, lambda found, r=render: found[1] + r().strip() + found[2], text, flags=re.DOTALL)
    page.write_text(text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _named(pair: str, found: Known) -> str:
    return f"{pair.replace('->', ' → ')} ({found['batch']})"


def _steps(pairs: Known) -> str:
    names = list(dict.fromkeys(name for found in pairs.values() for name in found["steps"]))
    rows = []
    for name in names:
        cells = [_cell(name, found["steps"].get(name)) for found in pairs.values()]
        rows.append([name, *cells])
    return _table(["step", *(_named(pair, found) for pair, found in pairs.items())], rows)


def _cell(name: str, row: Known | None) -> str:
    if row is None:
        return ""
    if name == "bare":
        return f"1 ({row['ms']:.0f} ms)"
    return f"**{row['ratio']:.2f}** ({row['low']:.2f} to {row['high']:.2f})"


def _bounds(pairs: Known) -> str:
    kinds = {"float32": "default", "bfloat16": "bf16-mixed"}
    kinds = {kind: name for kind, name in kinds.items() if all(kind in found["floor_ms"] for found in pairs.values())}
    rows = []
    for pair, found in pairs.items():
        floor, steps, memory = found["floor_ms"], found["steps"], found["peak_mb"]
        times = " and ".join(f"{floor[kind]:.0f}" for kind in kinds)
        over = " and ".join(f"{steps[name]['ms'] / floor[kind]:.1f}" for kind, name in kinds.items())
        held = [f"{memory[name]:.0f}" for name in ("bare", "default", "recompute")]
        rows.append([_named(pair, found), f"{found['gflop']:.0f}", f"{times} ms", over, *held])
    head = ["pair (batch)", "GFLOP a step", f"at the measured peaks, {' and '.join(kinds)}"]
    head += [f"{' and '.join(kinds.values())} over that", "peak MB: bare", "default", "recompute"]
    return "\n" + _table(head, rows)


def _overhead(known: Known) -> str:
    over: dict[str, dict[str, float]] = {}
    for pair, name, row in (
        (pair, name, row)
        for group in ("live", "cached")
        for pair, found in known.get(group, {}).items()
        for name, row in found["steps"].items()
    ):
        if "over_own" in row:
            over.setdefault(name, {})[pair] = row["over_own"]
    pairs = list(dict.fromkeys(pair for row in over.values() for pair in row))
    rows = [[name, *(f"{row[pair]:.3f}" if pair in row else "" for pair in pairs)] for name, row in over.items()]
    small = f"Of two perceptrons of width 8 they take {known['lightning']['ms']:.1f} ms a step."
    return _table(["step", *(pair.replace("->", " → ") for pair in pairs)], rows) + f"\n{small}"


def _growth(known: Known) -> str:
    rows = []
    for axis, title in AXES.items():
        for value, row in known[axis].items():
            kd = f"{row['ms']:.1f} ms", f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            rows.append([f"{title} {value}", f"{row['bare']:.1f} ms", *kd])
    return _table([known["pair"].replace("->", " → "), "bare loop", "kd, live", "ratio"], rows)


def _forwards(known: Known) -> str:
    names = list(next(iter(known.values())))
    rows = [[name, *(_forward(own[name]) for own in known.values())] for name in names]
    return _table(["teacher's forward pass alone", *known], rows)


def _forward(row: Known) -> str:
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _kl(known: Known) -> str:
    rows = []
    for classes, row in known.items():
        ways = [f"{row[f'{way}_ms']:.2f} ms, {row[f'{way}_mb']:.1f} MB" for way in ("plain", "logs", "kd")]
        over = [row[f"kd_{what}"] / row[f"{way}_{what}"] for way in ("plain", "logs") for what in ("ms", "mb")]
        errors = " ".join(f"{row[f'{way}_gradient_error']:.0e}" for way in ("plain", "logs", "kd"))
        ratios = "{:.2f}, {:.2f}; {:.2f}, {:.2f}".format(*over)
        rows.append([f"128 x {int(classes):,}", *ways, ratios, errors])
    head = ["logits", "`kl_div(log_softmax, softmax)`", "`kl_div(..., log_target=True)`", "kd"]
    return _table([*head, "kd over both: time, memory", "gradient's errors"], rows)
