"""Small finished runs, made in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

import kd
from kd.cli.root import register
from kd.process.compose import plain
from kd.train.pipeline import train

QUIET = ("trainer.enable_progress_bar=false", "logger=none")


def trained(folder: Path, *overrides: str) -> Path:
    """Trains what the overrides say, its teacher too, and gives the run folder: ``folder/run``."""
    register()
    with initialize_config_dir(str(kd.CONFIG_DIR), version_base="1.3"):
        config: dict[str, Any] = plain(compose("train", [*QUIET, *overrides]))
    cache = {**config["cache"], "root": str(folder / "cache")}
    train({**config, "teachers": str(folder / "teachers"), "cache": cache}, folder / "run")
    return folder / "run"
