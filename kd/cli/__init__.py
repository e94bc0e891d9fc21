"""The command line: Hydra composes, ``kd.train`` runs, and what goes wrong is said in one line."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import kd
from kd.cli.overrides import check_words
from kd.cli.root import register
from kd.cli.typed import added, resume_of, typed_of
from kd.errors import NO_SPACE, InputError
from kd.process import ranks
from kd.process.compose import SAVED, job_of, plain
from kd.process.exits import Exit, exit_on_error, print_error
from kd.registry import load_plugins, node_of


def train() -> None:
    """``kd-train``: trains a student, as the command line says."""
    _command("train", _train)


def _train(config: DictConfig) -> float | None:
    from kd.train.pipeline import train as run
    from kd.train.resume import resumed

    given, runtime = plain(config), HydraConfig.get().runtime
    words = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    if (folder := resume_of(given, words)) is not None:
        summary = resumed(folder, typed_of(given, words), given["trust"], given["resume_data"])
    elif given["resume_data"] != "same":
        raise InputError(f"resume_data={given['resume_data']} is for a run that is resumed, by resume=RUN")
    else:
        summary = run(given, Path(runtime.output_dir), objective=runtime.choices.get("objective"))
    return summary["metrics"]["best"].get("val/acc")


def compare() -> None:
    """``kd-compare``: scratch, distilled students and seeds in one table."""
    if ranks.is_child():
        return train()
    with exit_on_error():
        _prepare()
        from kd.compare import launch as study

        given = get_args_parser().parse_intermixed_args()
        if given.help:
            print(study.HELP)
            return None
        if given.cfg or given.multirun:
            raise InputError("kd-compare takes overrides of kd-train and its own; kd-train --cfg job shows them")
        words = [*given.overrides]
        if given.config_dir:
            words.append(f"hydra.searchpath=[file://{Path(given.config_dir).absolute()}]")
        if failure := study.compare(words, plain):
            if failure.line:
                print_error(failure.line)
            raise Exit(failure.code)
    return None


def evaluate() -> None:
    """``kd-evaluate``: measures a run's student."""
    from kd.evaluate import evaluate as run

    _function("evaluate", run)


def export() -> None:
    """``kd-export``: writes a run's student for use without kd."""
    from kd.export import export as run

    _function("export", run)


def _function(name: str, function: Callable[..., Any]) -> None:
    """Runs a function as a Hydra command: its parameters are the keys, and its defaults theirs."""
    root = OmegaConf.structured(node_of(function))
    OmegaConf.set_struct(root.data, False)  # of the run's own data any key may be changed
    ConfigStore.instance().store(name=f"{name}_root", node=root, provider="kd")
    _command(name, lambda config: function(**plain(config)))


def _command(name: str, task: Callable[[DictConfig], Any]) -> None:
    """Runs a Hydra command. Hydra is asked to raise, not to print, so that kd decides what is shown."""

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        if name != "train":
            with exit_on_error():
                return task(config)
        with job_of(config, HydraConfig.get().mode == RunMode.MULTIRUN) as together, exit_on_error(together):
            return task(config)

    with exit_on_error():
        words = _prepare()
        if name == "train" and ranks.started_outside():
            _check_shared(words)
        try:
            hydra.main(version_base="1.3", config_path=str(kd.CONFIG_DIR), config_name=name)(job)()
        except OSError as error:  # before the job
            if error.errno in NO_SPACE or isinstance(error, HydraException):
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise InputError(f"the run folder cannot be made: {where}{error.strerror}; see hydra.run.dir") from error


def _check_shared(words: list[Override]) -> None:
    if "-m" in sys.argv or "--multirun" in sys.argv or "hydra.run.dir" not in [word.key_or_group for word in words]:
        raise InputError(
            "torchrun and srun start each process by itself: name the folder that they share, hydra.run.dir=FOLDER, "
            "and start the jobs of a sweep one by one"
        )


def _prepare() -> list[Override]:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike python -m, does not see the user's files
    load_plugins()
    register()
    sys.argv[1:] = added(sys.argv[1:])
    words = check_words()
    if ranks.rank():
        _quieten()
    return words


def _quieten() -> None:
    """What a process other than the first is told besides: it neither logs nor records the configuration.

    One that Lightning started for a job of a sweep is told the job instead of the sweep.
    """
    if ranks.is_child() and (swept := os.environ.get(ranks.SWEPT)):
        where = str(Path(swept) / SAVED)
        sys.argv[1:] = ["--config-path", os.path.dirname(where), "--config-name", "config", f'hydra.run.dir="{swept}"']
    sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]


def report() -> None:
    """``kd-report``: compares all runs below a folder on one page."""
    _command("report", _report)


def _report(config: DictConfig) -> None:
    from kd.report import write

    given = plain(config)
    write(Path(str(given["runs"])), Path(str(given["out"] or given["runs"]))).print()
