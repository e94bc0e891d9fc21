"""Dotted paths of earlier versions, as in run folders and users' yaml, and the current ones.

A path that kd writes names a package and not a file in it (``kd.losses.CE``, ``kd.callbacks.Last``), so that files may
move. Older run folders name files (``kd.losses.hard.CE``) and classes by earlier names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PACKAGES = ("kd.losses", "kd.callbacks", "kd.distill")  # that re-export the public names of their files
EARLIER = {
    "kd.averaging.EMA": "kd.callbacks.EMA",
    "kd.batch_size.BatchSize": "kd.callbacks.BatchSize",
    "kd.batch_statistics.AtChance": "kd.callbacks.AtChance",
    "kd.batch_statistics.BatchStatistics": "kd.callbacks.BatchStatistics",
    "kd.best.Best": "kd.callbacks.Best",
    "kd.board.Board": "kd.callbacks.TensorBoard",
    "kd.checkpoints.Best": "kd.callbacks.Best",
    "kd.checkpoints.Last": "kd.callbacks.Last",
    "kd.finite.Finite": "kd.callbacks.NaNGuard",
    "kd.monitor.Bar": "kd.callbacks.ProgressBar",
    "kd.monitor.Charts": "kd.callbacks.Charts",
    "kd.monitor.Pictures": "kd.callbacks.Pictures",
    "kd.monitor.Throughput": "kd.callbacks.Throughput",
    "kd.moving.Moving": "kd.distill.MeanTeacher",
    "kd.mutual.Peers": "kd.distill.Peers",
    "kd.ressl.Momentum": "kd.distill.MomentumTeacher",
    "kd.sweep.Reported": "kd.cli.sweep.SweepReport",
    "kd.teacher.Ensemble": "kd.distill.Ensemble",
}

FIRST = {path: earlier for earlier, path in EARLIER.items()}


def first(path: str) -> str:
    """The first dotted path of a class, which digests use whatever its current name."""
    return FIRST.get(path, path)


def current(path: str) -> str:
    """The current dotted path of a class or function."""
    path = EARLIER.get(path, path)
    package = next((package for package in PACKAGES if path.startswith(f"{package}.")), None)
    return path if package is None else f"{package}.{path.rpartition('.')[2]}"


def with_current(node: Any) -> Any:
    """A copy of plain containers in which every ``_target_`` is a current path."""
    if isinstance(node, Mapping):
        copied = {key: with_current(value) for key, value in node.items()}
        if isinstance(copied.get("_target_"), str):
            copied["_target_"] = current(copied["_target_"])
        return copied
    return [with_current(value) for value in node] if isinstance(node, (list, tuple)) else node
