"""The commands, which Hydra configures, and :func:`compose`, their configuration from Python."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import kd
from kd.cli.overrides import check_arguments, expand
from kd.cli.resume_overrides import allow_run_options, changed_options, resume_folder
from kd.cli.root import register
from kd.errors import NO_SPACE, InputError
from kd.process import ranks
from kd.process._hydra import argument_parser
from kd.process.classify import classify
from kd.process.compose import SAVED, composing, job_of, plain
from kd.process.exits import Exit, exit_on_error, print_error
from kd.registry import defaults_of, load_plugins, locate, node_of

FUNCTIONS = {"evaluate": "kd.evaluate:evaluate", "export": "kd.export:export"}  # their parameters are the keys


def compose(*overrides: str, config: str = "train") -> dict[str, Any]:
    """The configuration of a command as plain containers; it may be called repeatedly, with or without a Hydra job.

    Args:
        overrides: as on the command line, for example ``"student=resnet20", "T=2"``.
        config: whose: ``train``, ``evaluate``, ``export`` or ``report``.

    Raises:
        InputError: an unknown key or choice, or a value of the wrong type or missing; it is named.
    """
    load_plugins()
    register()
    if config in FUNCTIONS:
        _register_function(config)
    try:
        _, expanded = expand(overrides)
        with composing(kd.CONFIG_DIR):
            return plain(hydra.compose(config, expanded))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(classify(error)[1] or str(error)) from error


def train() -> None:
    """``kd-train``: trains a student."""
    _command("train", _train)


def _train(composed: DictConfig) -> float | None:
    from kd.train.pipeline import train as run
    from kd.train.resume import resumed

    config, runtime = plain(composed), HydraConfig.get().runtime
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    if (folder := resume_folder(config, overrides)) is not None:
        summary = resumed(folder, changed_options(config, overrides), config["trust"], config["resume_data"])
    elif config["resume_data"] != "same":
        raise InputError(f"resume_data={config['resume_data']} applies to a resumed run only; set resume=RUN as well")
    else:
        summary = run(config, Path(runtime.output_dir), objective=runtime.choices.get("objective"))
    return summary["metrics"]["best"].get("val/acc")


def compare() -> None:
    """``kd-compare``: scratch, distilled students and seeds in one table."""
    if ranks.is_child():
        return train()
    with exit_on_error():
        _prepare()
        from kd.compare import launch as study

        arguments = argument_parser().parse_intermixed_args()
        if arguments.help:
            print(study.HELP)
            return None
        if arguments.cfg or arguments.multirun:
            raise InputError("kd-compare takes overrides of kd-train and its own; kd-train --cfg job shows them")
        overrides = [*arguments.overrides]
        if arguments.config_dir:
            overrides.append(f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]")
        if failure := study.compare(overrides, plain):
            if failure.line:
                print_error(failure.line)
            raise Exit(failure.code)
    return None


def evaluate() -> None:
    """``kd-evaluate``: measures a run's student."""
    _run_function("evaluate")


def export() -> None:
    """``kd-export``: writes a run's student for use without kd."""
    _run_function("export")


def _run_function(name: str) -> None:
    function = _register_function(name)
    _command(name, lambda composed: function(**plain(composed)))


def _register_function(name: str) -> Callable[..., Any]:
    """Registers the parameters of a command's function, with their defaults, as its root keys; returns the function."""
    function = locate(FUNCTIONS[name])
    root = OmegaConf.structured(node_of(function))
    for key, default in defaults_of(function).items():
        if isinstance(default, Mapping):  # such as any key of the run's own data
            OmegaConf.set_struct(root[key], False)
    ConfigStore.instance().store(name=f"{name}_root", node=root, provider="kd")
    return function


def report() -> None:
    """``kd-report``: compares all runs below a folder on one page."""
    _command("report", _report)


def _report(composed: DictConfig) -> None:
    from kd.report import write

    config = plain(composed)
    write(Path(str(config["runs"])), Path(str(config["out"] or config["runs"]))).print()


def _command(name: str, task: Callable[[DictConfig], Any]) -> None:
    """Runs a Hydra command. Hydra raises its errors, so that kd decides what is printed."""

    @functools.wraps(task)
    def job(composed: DictConfig) -> Any:
        if name != "train":
            with exit_on_error():
                return task(composed)
        with job_of(composed, HydraConfig.get().mode == RunMode.MULTIRUN) as processes, exit_on_error(processes):
            return task(composed)

    with exit_on_error():
        overrides = _prepare()
        if name == "train" and ranks.started_outside():
            _check_shared(overrides)
        try:
            hydra.main(version_base="1.3", config_path=str(kd.CONFIG_DIR), config_name=name)(job)()
        except OSError as error:  # before the job
            if error.errno in NO_SPACE or isinstance(error, HydraException):
                raise
            path = f"{error.filename}: " if error.filename else ""
            raise InputError(f"the run folder cannot be made: {path}{error.strerror}; see hydra.run.dir") from error


def _check_shared(overrides: list[Override]) -> None:
    keys = [override.key_or_group for override in overrides]
    if "-m" in sys.argv or "--multirun" in sys.argv or "hydra.run.dir" not in keys:
        raise InputError(
            "torchrun and srun start each process separately: set the folder that they share, hydra.run.dir=FOLDER, "
            "and start the jobs of a sweep one by one"
        )


def _prepare() -> list[Override]:
    """Registers everything that the command line may name, and checks and expands it; the overrides as typed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike python -m, does not see the user's files
    load_plugins()
    register()
    sys.argv[1:] = allow_run_options(sys.argv[1:])
    overrides = check_arguments()
    if ranks.rank():
        _quieten()
    return overrides


def _quieten() -> None:
    """Changes the command line of a process other than the first, which neither logs nor records the configuration.

    One that Lightning started for a job of a sweep runs that job and not the sweep.
    """
    if ranks.is_child() and (swept := os.environ.get(ranks.SWEPT)):
        config = str(Path(swept) / SAVED)
        sys.argv[1:] = ["--config-path", os.path.dirname(config), "--config-name", "config", f'hydra.run.dir="{swept}"']
    sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
