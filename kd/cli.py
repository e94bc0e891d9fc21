"""The command line: Hydra composes, ``kd.train`` runs, and what goes wrong is said in one line."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

import kd
import kd.data
import kd.losses
import kd.models
import kd.optim
from kd.complaint import explain
from kd.errors import InputError
from kd.registry import load_plugins


@dataclass
class Root:
    """The root keys and their types; ``configs/train.yaml`` gives their values."""

    task: str = MISSING
    T: float = MISSING
    alpha: float = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    init_epochs: int = MISSING
    teachers: str = MISSING
    pair: Any = MISSING
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

    summary = run(plain(config), Path(HydraConfig.get().runtime.output_dir))
    return summary["metrics"]["best"].get("val/acc")


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as resolved plain containers.

    Raises:
        InputError: a value is still missing; its key is named.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise InputError(f"{missing[0]} must be given")
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _command(name: str, task: Callable[[DictConfig], Any]) -> None:
    """Runs a Hydra command. Hydra is asked to raise, not to print, so that bad input is one line."""
    full = os.environ.setdefault("KD_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike python -m, does not see the user's files

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        with _one_line(full):
            return task(config)

    with _one_line(full):
        load_plugins()
        _register()
        _check_flags()
        hydra.main(version_base="1.3", config_path=str(kd.CONFIG_DIR), config_name=name)(job)()


@contextmanager
def _one_line(full: bool) -> Iterator[None]:
    """Turns bad input into ``error: ...`` and exit code 2; anything else stays a traceback."""
    try:
        yield
    except Exception as error:
        line = explain(error)
        if full or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def _check_flags() -> None:
    """Refuses unknown flags in one line, and lets known ones stand anywhere, not only before the overrides."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; options are written key=value, for example trainer.max_epochs=3")

    parser.error = refuse  # type: ignore[method-assign]
    overrides = parser.parse_intermixed_args().overrides
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in overrides] + overrides


def _register() -> None:
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
    OmegaConf.register_new_resolver("one_minus", lambda x: round(1 - float(x), 12), replace=True)
    store = ConfigStore.instance()
    store.store(name="root", node=Root, provider="kd")
    store.store(group="teacher", name="none", node={"_target_": None}, provider="kd")


if __name__ == "__main__":
    train()
