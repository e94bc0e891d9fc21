"""Small finished runs, made in this process."""

from __future__ import annotations

from pathlib import Path

from kd.cli import compose
from kd.train.pipeline import train

QUIET = ("trainer.enable_progress_bar=false", "logger=none")


def trained(folder: Path, *overrides: str) -> Path:
    """Trains as the overrides configure, the teacher too, and returns the run folder: ``folder/run``."""
    config = compose(*QUIET, *overrides)
    cache = {**config["cache"], "root": str(folder / "cache")}
    train({**config, "teachers": str(folder / "teachers"), "cache": cache}, folder / "run")
    return folder / "run"
