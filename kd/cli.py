"""The command line: Hydra composes, ``kd.train`` runs, and what goes wrong is said in one line."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

import kd
import kd.data
import kd.losses
import kd.models
import kd.optim
from kd.complaint import explain
from kd.registry import load_plugins


@dataclass
class Root:
    """The root keys and their types; ``configs/train.yaml`` gives their values."""

    task: str = MISSING
    T: float = MISSING
    alpha: float = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    teachers: str = MISSING
    data: Any = MISSING
    student: Any = MISSING
    teacher: Any = None
    objective: Any = MISSING
    optim: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    callbacks: Any = MISSING


def train() -> None:
    """``kd-train``: trains a student, as the command line says. Exit code 0 done, 1 bug, 2 bad input."""
    _command("train", _train)


def _train(config: DictConfig) -> float | None:
    from kd.train import train as run

    folder = Path(HydraConfig.get().runtime.output_dir)
    summary = run(plain(config), folder)
    return summary["metrics"]["best"].get("val/acc")


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as resolved plain containers."""
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _command(name: str, task: Any) -> None:
    """Runs a Hydra command; exceptions come here because Hydra is asked not to print them itself."""
    full = os.environ.setdefault("KD_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike python -m, does not see the user's files
    try:
        load_plugins()
        _register()
        hydra.main(version_base="1.3", config_path=str(kd.CONFIG_DIR), config_name=name)(task)()
    except Exception as error:
        line = explain(error)
        if full or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def _register() -> None:
    logging.getLogger("pytorch_lightning").addFilter(lambda record: "Tip:" not in record.getMessage())
    OmegaConf.register_new_resolver("one_minus", lambda x: round(1 - float(x), 12), replace=True)
    store = ConfigStore.instance()
    store.store(name="root", node=Root, provider="kd")
    store.store(group="teacher", name="none", node={"_target_": None}, provider="kd")


if __name__ == "__main__":
    train()
