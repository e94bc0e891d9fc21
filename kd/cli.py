"""The command line: Hydra composes, ``kd.train`` runs, and what goes wrong is said in one line."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
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
from kd.registry import defaults_of, load_plugins, models, node_of
from kd.teacher import Ensemble


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
    cache: Any = MISSING
    pair: Any = MISSING
    data: Any = MISSING
    student: Any = MISSING
    teacher: Any = None
    objective: Any = MISSING
    optim: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    callbacks: Any = MISSING
    cell: Any = None


def train() -> None:
    """``kd-train``: trains a student, as the command line says. Exit code 0 done, 1 bug, 2 bad input."""
    _command("train", _train)


def _train(config: DictConfig) -> float | None:
    from kd.train import train as run

    runtime = HydraConfig.get().runtime
    summary = run(plain(config), Path(runtime.output_dir), objective=runtime.choices.get("objective"))
    return summary["metrics"]["best"].get("val/acc")


def compare() -> None:
    """``kd-compare``: scratch, distilled students and seeds in one table. Exit code 0 done, 1 bug, 2 bad input."""
    with _one_line(_full()):
        _prepare()
        from kd import study

        given = get_args_parser().parse_intermixed_args()
        if given.help:
            print(study.HELP)
            return
        if given.cfg or given.multirun:
            raise InputError("kd-compare takes overrides of kd-train and its own; kd-train --cfg job shows them")
        words = [*given.overrides]
        if given.config_dir:
            words.append(f"hydra.searchpath=[file://{Path(given.config_dir).absolute()}]")
        study.compare(words, plain)


def evaluate() -> None:
    """``kd-evaluate``: measures a run's student. Exit code 0 done, 1 bug, 2 bad input."""
    from kd.evaluate import evaluate as run

    _function("evaluate", run)


def export() -> None:
    """``kd-export``: writes a run's student for use without kd. Exit code 0 done, 1 bug, 2 bad input."""
    from kd.export import export as run

    _function("export", run)


def _function(name: str, function: Callable[..., Any]) -> None:
    """Runs a function as a Hydra command: its parameters are the keys, and its defaults theirs."""
    root = OmegaConf.structured(node_of(function))
    OmegaConf.set_struct(root.data, False)  # of the run's own data any key may be changed
    ConfigStore.instance().store(name=f"{name}_root", node=root, provider="kd")
    _command(name, lambda config: function(**plain(config)))


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
    full = _full()

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        with _one_line(full):
            return task(config)

    with _one_line(full):
        _prepare()
        hydra.main(version_base="1.3", config_path=str(kd.CONFIG_DIR), config_name=name)(job)()


def _full() -> bool:
    """Whether the user asked for whole tracebacks; Hydra itself always raises, so that kd decides what is shown."""
    full = os.environ.setdefault("KD_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    return full


def _prepare() -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike python -m, does not see the user's files
    load_plugins()
    _register()
    _check_flags()


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
    flags = [word for word in sys.argv[1:] if word not in overrides]
    sys.argv[1:] = flags + [word for override in overrides for word in _several_teachers(override)]


def _several_teachers(override: str) -> list[str]:
    """``teacher=[a,b]`` as the choice ``ensemble`` with members; anything else as it is."""
    match = re.fullmatch(r"teacher=\[([\w, ]*)\]", override)
    if match is None:
        return [override]
    chosen: list[str] = []
    words = ["teacher=ensemble"]
    for choice in filter(None, (part.strip() for part in match[1].split(","))):
        chosen.append(choice)
        again = chosen.count(choice)
        name = f"{choice}_{again}" if again > 1 else choice
        words.append(f"+teacher@teacher.members.{name}={choice}")
    return words


def _register() -> None:
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it complains of is raised as well
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
    OmegaConf.register_new_resolver("one_minus", lambda x: round(1 - float(x), 12), replace=True)
    OmegaConf.register_new_resolver("kd_networks", _networks, replace=True)
    store = ConfigStore.instance()
    store.store(name="root", node=Root, provider="kd")
    store.store(group="teacher", name="none", node={"_target_": None}, provider="kd")
    ensemble = {"_target_": "kd.teacher.Ensemble", "members": {}, **defaults_of(Ensemble)}
    store.store(
        group="teacher",
        name="ensemble",
        node=ensemble | {"T": "${T}", "min_accuracy": None, "shuffle": False},
        provider="kd",
    )


def _networks() -> str:
    """The networks and what their documentation says first, for ``--help``."""
    documented = {name: (inspect.getdoc(models[name]) or "").partition("\n")[0] for name in models}
    return "\n".join(f"  {name:12} {line}" for name, line in sorted(documented.items()))


def report() -> None:
    """``kd-report``: compares all runs below a folder on one page. Exit code 0 done, 1 bug, 2 bad input."""
    _command("report", _report)


def _report(config: DictConfig) -> None:
    from kd.report import write

    given = plain(config)
    write(Path(str(given["runs"])), Path(str(given["out"] or given["runs"]))).say()


if __name__ == "__main__":
    train()
