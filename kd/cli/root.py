"""The root configuration, resolvers, and what is registered before Hydra composes."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

import kd.data
import kd.losses
import kd.models
import kd.optim  # noqa: F401 (each of them registers its own)
from kd.callbacks.modes import mode_of
from kd.distill.ensemble import Ensemble
from kd.distill.teacher_options import TeacherOptions
from kd.registry import defaults_of, models, optimisers


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


def register() -> None:
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
    from_run = {"_target_": MISSING, **defaults_of(TeacherOptions)}
    store.store(group="teacher", name="from_run", node=from_run, provider="kd")
    ensemble = {"_target_": "kd.distill.Ensemble", "members": {}, **defaults_of(Ensemble)}
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
