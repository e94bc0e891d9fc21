"""The root configuration, the resolvers, and everything that is registered before Hydra composes."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, Node, OmegaConf

import kd.data
import kd.losses
import kd.models
import kd.optim  # noqa: F401 (each registers its members)
from kd.callbacks.modes import mode_of
from kd.distill.ensemble import Ensemble
from kd.distill.teacher_options import TeacherOptions
from kd.process._hydra import key_of, shared_store
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
    """Registers resolvers and configuration nodes with OmegaConf and Hydra, and silences known warnings; repeatable."""
    signals = "pytorch_lightning.trainer.connectors.signal_connector"
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed", signals):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # its errors are raised as well
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*in eval mode at the start.*")  # a frozen backbone, on purpose
    OmegaConf.register_new_resolver("one_minus", lambda x: round(1 - float(x), 12), replace=True)
    OmegaConf.register_new_resolver("for_optim", _for_optim, replace=True)
    OmegaConf.register_new_resolver("by_term", _by_term, replace=True)
    OmegaConf.register_new_resolver("kd_mode", mode_of, replace=True)
    OmegaConf.register_new_resolver("kd_networks", _networks, replace=True)
    store = shared_store()
    store.store(name="root", node=Root, provider="kd")
    if {"-h", "--help"} & set(sys.argv):  # the name suffices, and importing Lightning takes seconds
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


def _for_optim(name: str, value: Any, *, _node_: Node, _parent_: DictConfig) -> Any:
    """A recipe's value of an option of the optimiser ``name``; any other optimiser keeps its own default.

    DOT is a variant of SGD and takes SGD's values.
    """
    target = _parent_.get("_target_")
    optimiser = optimisers.name_of(target)
    if target is None or name in (optimiser, {"dot": "sgd"}.get(str(optimiser))):
        return value
    return defaults_of(get_object(target)).get(key_of(_node_), value)


def _by_term(values: DictConfig, otherwise: Any, *, _root_: DictConfig) -> Any:
    """The value of the first of these terms that the objective has, else ``otherwise``."""
    return next((value for name, value in values.items() if name in _root_.objective), otherwise)


def _networks() -> str:
    """The networks with the first line of their documentation, for ``--help``."""
    documented = {name: (inspect.getdoc(models[name]) or "").partition("\n")[0] for name in models}
    return "\n".join(f"  {name:12} {line}" for name, line in sorted(documented.items()))
