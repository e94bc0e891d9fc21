"""Reads run folders into plain records. A run folder is data: no code that it names is run or imported."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kd.errors import InputError
from kd.registry import nested
from kd.run_folder.layout import CONFIG, HISTORY, SUMMARY
from kd.run_folder.summary import read_config, read_summary

PLAN = "plan.json"
ABSENT = type(None)
NUMBER = (int, float)
EXPECTED: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "cell": (dict, ABSENT),
    "versions": (dict, ABSENT),
    "data.classes": (int,),
    "data.config": (dict, ABSENT),
    **{f"data.{part}": (int, ABSENT) for part in ("train", "val", "test")},
    "student.name": (str,),
    "teacher": (dict, ABSENT),
    **{f"{side}.{size}": (*NUMBER, ABSENT) for side in ("student", "teacher") for size in ("parameters", "macs")},
    "objective": (dict, ABSENT),
    **{f"objective.{key}": (*NUMBER, ABSENT) for key in ("T", "alpha")},
    "objective.terms": (list, ABSENT),
    "training": (dict, ABSENT),
    **{f"training.{key}": (*NUMBER, ABSENT) for key in ("epochs", "seconds")},
    "metrics.best": (dict,),
    "metrics.last": (dict,),
    "metrics.test": (dict, ABSENT),
    "metrics.best.val/acc": (*NUMBER, ABSENT),
    "metrics.last.val/acc": (*NUMBER, ABSENT),
}  # dotted key of summary.json to the accepted types


@dataclass(frozen=True)
class Run:
    """One finished run.

    ``history`` holds the rows of ``history.csv``, ``overrides`` the command line, and ``latencies`` the median
    milliseconds per image for each export format and processor, as measured by kd-export.
    """

    folder: Path
    name: str
    summary: dict[str, Any] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    history: tuple[dict[str, float], ...] = field(repr=False)
    overrides: tuple[str, ...] | None
    latencies: dict[str, float]
    modified: float

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])

    @property
    def cell(self) -> dict[str, Any]:
        return self.summary.get("cell") or {}

    @property
    def student(self) -> dict[str, Any]:
        return self.summary["student"]

    @property
    def teacher(self) -> dict[str, Any]:
        return self.summary.get("teacher") or {}

    @property
    def data(self) -> dict[str, Any]:
        return self.summary["data"]

    @property
    def training(self) -> dict[str, Any]:
        return self.summary.get("training") or {}

    @property
    def objective(self) -> dict[str, Any]:
        return self.summary.get("objective") or {}

    def score(self, part: str, key: str) -> float | None:
        """A finite number of ``metrics.best``, ``last`` or ``test``; None if it was not measured."""
        value = (self.summary["metrics"].get(part) or {}).get(key)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    @property
    def accuracy(self) -> float | None:
        """Test accuracy at the best validation epoch; validation accuracy without a test set."""
        test = self.score("test", "acc")
        return self.score("best", "val/acc") if test is None else test


@dataclass(frozen=True)
class Excluded:
    """A run folder that is not part of any table, and why."""

    name: str
    why: str


def collect(root: Path) -> tuple[list[Run], list[Excluded]]:
    """All run folders below ``root`` (or ``root`` itself): the finished runs, and the others.

    Raises:
        InputError: no such folder, no run folder in it, or no finished run.
    """
    if not root.is_dir():
        raise InputError(f"runs={root} is not a folder")
    runs, excluded = [], []
    for folder in folders(root):
        name = str(folder.relative_to(root)) if folder != root else root.name
        if not (folder / SUMMARY).is_file():
            excluded.append(Excluded(name, _unfinished(folder)))
            continue
        try:
            runs.append(read(folder, name))
        except InputError as error:
            excluded.append(Excluded(name, str(error).removeprefix(f"{folder} ").removeprefix(f"{folder}/")))
    names = {run.name for run in runs} | {run.name for run in excluded}
    for path in sorted(root.rglob(PLAN)):
        planned = [str((path.parent / cell).relative_to(root)) for cell in plan_of(path.parent)[1]]
        excluded += [Excluded(name, "planned by kd-compare, not started") for name in planned if name not in names]
    if not runs and excluded:
        first = ", ".join(run.name for run in excluded[:3]) + (", ..." if len(excluded) > 3 else "")
        raise InputError(f"no run below runs={root} has finished: {first}")
    if not runs:
        raise InputError(f"runs={root} contains no run folder (a folder with {SUMMARY}, as kd-train writes it)")
    return runs, excluded


def folders(root: Path) -> list[Path]:
    """All run folders: those with a summary, or with a run's configuration and no run below them."""
    runs: list[Path] = []
    for directory, _, files in os.walk(root, topdown=False):
        folder = Path(directory)
        if any(part.startswith(".") for part in folder.relative_to(root).parts):
            continue
        holds_runs = any(run.is_relative_to(folder) for run in runs)
        if SUMMARY in files or (CONFIG in files and not holds_runs and _is_run(folder)):
            runs.append(folder)
    return sorted(runs, key=lambda path: [_natural(part) for part in path.parts])


def read(folder: Path, name: str) -> Run:
    """Reads one finished run.

    Raises:
        InputError: a summary that is damaged or lacks a required key.
    """
    summary = read_summary(folder)
    for path, kinds in EXPECTED.items():
        if not isinstance(_value(summary, path), kinds):
            raise InputError(f"{SUMMARY} has no usable {path}")
    return Run(
        folder,
        name,
        summary,
        _config(folder),
        _history(folder / HISTORY),
        command_of(folder),
        _latencies(folder),
        (folder / SUMMARY).stat().st_mtime,
    )


def command_of(folder: Path) -> tuple[str, ...] | None:
    """The arguments of kd-train, as recorded by Hydra; None without a record."""
    overrides = _yaml(folder / ".hydra/overrides.yaml")
    hydra = _yaml(folder / ".hydra/hydra.yaml")
    try:
        if hydra["hydra"]["job"]["config_name"] != "train" or not isinstance(overrides, list):
            return None
    except (KeyError, TypeError):
        return None
    return tuple(word for word in map(str, overrides) if not word.startswith("cell="))


def plan_of(folder: Path) -> tuple[tuple[str, ...] | None, list[str]]:
    """The arguments of kd-compare and the folders of its runs; None and an empty list without a plan."""
    try:
        plan = json.loads((folder / PLAN).read_text())
        cells = [f"{cell['label']}/{cell['seed']}" for cell in plan["cells"]]
        words = tuple(str(word) for word in plan["words"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, []
    return words, [cell for cell in cells if ".." not in cell and not cell.startswith("/")]


def quoted(command: str, words: tuple[str, ...]) -> str:
    """A command line for a POSIX shell."""
    return shlex.join([command, *words])


def latencies(runs: Iterable[Run]) -> tuple[str, dict[str, float]]:
    """The latency measurement (format, processor, threads) that most runs share, and its milliseconds by run name."""
    runs = list(runs)
    settings = sorted({setting for run in runs for setting in run.latencies})
    common = max(settings, key=lambda setting: sum(setting in run.latencies for run in runs), default="")
    return common, {run.name: run.latencies[common] for run in runs if common in run.latencies}


def _latencies(folder: Path) -> dict[str, float]:
    measured = {}
    for path in sorted(folder.glob("export/*/card.json")):
        try:
            card = json.loads(path.read_text())
            latency = card["latency"]
            setting = f"{card['format']} on {latency['processor']}, {latency['threads']} threads"
            measured[setting] = float(latency["batch_1"]["median_ms"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a card of another version; latency is optional
    return {setting: ms for setting, ms in measured.items() if math.isfinite(ms)}


def _value(summary: dict[str, Any], path: str) -> Any:
    """The value of a dotted key: None if absent, ``...`` for a number that is not finite."""
    value = nested.get(summary, path)
    return ... if isinstance(value, float) and not math.isfinite(value) else value


def _unfinished(folder: Path) -> str:
    history = _history(folder / HISTORY)
    reached = f"after epoch {history[-1]['epoch']:.0f}" if history and "epoch" in history[-1] else "no epoch recorded"
    return f"unfinished or failed: {reached}, no {SUMMARY}"


def _is_run(folder: Path) -> bool:
    return {"task", "student", "trainer"} <= set(_config(folder))


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_config(folder)
    except InputError:
        return {}


def _history(path: Path) -> tuple[dict[str, float], ...]:
    try:
        with path.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error, UnicodeDecodeError):
        return ()
    return tuple(row for row in rows if "epoch" in row)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None


def _natural(part: str) -> tuple[Any, ...]:
    """A sort key that orders job 10 after job 9."""
    return (0, int(part), "") if part.isdigit() else (1, 0, part)
