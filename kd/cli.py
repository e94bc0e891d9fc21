"""The command line: Hydra composes, ``kd.train`` runs, and what goes wrong is said in one line."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

import kd
import kd.data
import kd.losses
import kd.models
import kd.optim
from kd import processes
from kd.complaint import check_words
from kd.ending import Ended, say, told
from kd.errors import NO_SPACE, InputError
from kd.models.weights import Origin
from kd.modes import mode_of
from kd.processes import Job
from kd.registry import defaults_of, load_plugins, models, node_of, optimisers
from kd.teacher import Ensemble
from kd.typed import added, resume_of, typed_of

SAVED = ".hydra/config.yaml"


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
    speed: Any = MISSING
    logger: Any = MISSING
    callbacks: Any = MISSING
    cell: Any = None
    nan: str = MISSING
    resume: str | None = None
    resume_data: str = "same"
    trust: bool = False


def train() -> None:
    """``kd-train``: trains a student, as the command line says."""
    _command("train", _train)


def _train(config: DictConfig) -> float | None:
    from kd.resume import resumed
    from kd.train import train as run

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
    if processes.is_child():
        return train()
    with told():
        _prepare()
        from kd import study

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
                say(failure.line)
            raise Ended(failure.code)
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
    """Runs a Hydra command. Hydra is asked to raise, not to print, so that kd decides what is shown."""

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        if name != "train":
            with told():
                return task(config)
        with job_of(config, HydraConfig.get().mode == RunMode.MULTIRUN) as together, told(together):
            return task(config)

    with told():
        words = _prepare()
        if name == "train" and processes.started_outside():
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


def job_of(config: DictConfig, swept: bool) -> Job:
    """The job that Hydra is about to run; if it is one of a sweep, its configuration is where its processes find it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if swept and not (folder / SAVED).is_file():
        (folder / SAVED).parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / SAVED)
    return Job(folder, swept)


def _prepare() -> list[Override]:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike python -m, does not see the user's files
    load_plugins()
    _register()
    sys.argv[1:] = added(sys.argv[1:])
    words = check_words()
    if processes.rank():
        _quieten()
    return words


def _quieten() -> None:
    """What a process other than the first is told besides: it neither logs nor records the configuration.

    One that Lightning started for a job of a sweep is told the job instead of the sweep.
    """
    if processes.is_child() and (swept := os.environ.get(processes.SWEPT)):
        where = str(Path(swept) / SAVED)
        sys.argv[1:] = ["--config-path", os.path.dirname(where), "--config-name", "config", f'hydra.run.dir="{swept}"']
    sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]


def _register() -> None:
    signals = "pytorch_lightning.trainer.connectors.signal_connector"
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed", signals):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it complains of is raised as well
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*in eval mode at the start.*")  # a frozen backbone is meant to be
    OmegaConf.register_new_resolver("one_minus", lambda x: round(1 - float(x), 12), replace=True)
    OmegaConf.register_new_resolver("for_optim", _for_optim, replace=True)
    OmegaConf.register_new_resolver("by_term", _by_term, replace=True)
    OmegaConf.register_new_resolver("kd_mode", mode_of, replace=True)
    OmegaConf.register_new_resolver("kd_networks", _networks, replace=True)
    store = ConfigStore.instance()
    # Hydra copies the whole store for each of its questions, a hundred times for --help; nodes are copied when read
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]
    store.store(name="root", node=Root, provider="kd")
    if {"-h", "--help"} & set(sys.argv):  # names suffice, and Lightning takes seconds to import
        store.store(group="module", name="folder", node={}, provider="kd")
    else:
        import kd.data.folder  # noqa: F401 (registers it)
    store.store(group="teacher", name="none", node={"_target_": None}, provider="kd")
    from_run = {"_target_": MISSING, **defaults_of(Origin)}
    store.store(group="teacher", name="from_run", node=from_run, provider="kd")
    ensemble = {"_target_": "kd.teacher.Ensemble", "members": {}, **defaults_of(Ensemble)}
    store.store(
        group="teacher",
        name="ensemble",
        node=ensemble | {"T": "${T}", "min_accuracy": None, "shuffle": False, "trainer": None},
        provider="kd",
    )


def _for_optim(name: str, value: Any, *, _node_: Any, _parent_: DictConfig) -> Any:
    """A recipe's value of an optimiser's option: another optimiser keeps its own default; DOT is a kind of SGD."""
    target = _parent_.get("_target_")
    known = {"dot": "sgd"}
    here = optimisers.name_of(target)
    if target is None or here == name or known.get(str(here)) == name:
        return value
    return defaults_of(get_object(target)).get(_node_._key(), value)


def _by_term(values: DictConfig, otherwise: Any, *, _root_: DictConfig) -> Any:
    """A recipe's value for the first of these terms that the objective has."""
    return next((value for name, value in values.items() if name in _root_.objective), otherwise)


def _networks() -> str:
    """The networks and what their documentation says first, for ``--help``."""
    documented = {name: (inspect.getdoc(models[name]) or "").partition("\n")[0] for name in models}
    return "\n".join(f"  {name:12} {line}" for name, line in sorted(documented.items()))


def report() -> None:
    """``kd-report``: compares all runs below a folder on one page."""
    _command("report", _report)


def _report(config: DictConfig) -> None:
    from kd.report import write

    given = plain(config)
    write(Path(str(given["runs"])), Path(str(given["out"] or given["runs"]))).say()


if __name__ == "__main__":
    train()
