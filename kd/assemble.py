"""From configuration to objects: each function makes one part of a run out of plain containers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from kd import run
from kd.data.memory import Memory
from kd.data.module import Data
from kd.distiller import Distiller
from kd.errors import InputError, placed
from kd.models.normalized import Normalized
from kd.objective import Objective, Term
from kd.optim import Optim
from kd.registry import build, defaults_of, named_by
from kd.teacher import Frozen

Config = Mapping[str, Any]


def data(config: Config) -> Any:
    """The data module: a source's arrays in memory, or the user's own LightningDataModule."""
    node = config["data"]
    taken = named_by(node, "data")
    around = {key for key in defaults_of(Memory) if key not in taken}
    source = build({key: value for key, value in node.items() if key not in around}, "data", seed=config["seed"])
    if isinstance(source, pl.LightningDataModule):
        if not hasattr(source, "classes") or not hasattr(source, "shape"):
            raise InputError(f"data: {type(source).__name__} must say `classes` and `shape` ([C, H, W])")
        return source
    with placed("data"):
        return Data(Memory(source, **{key: node[key] for key in around if key in node}), config["seed"])


def network(node: Config, at: str, data: Any) -> Normalized:
    """A network for the data, with its normalisation in front."""
    mean = getattr(data, "mean", None) or [0.0] * data.shape[0]
    std = getattr(data, "std", None) or [1.0] * data.shape[0]
    return run.network_of(node, at, data.classes, list(data.shape), mean, std)


def objective(nodes: Config) -> Objective:
    """The terms, each a loss with its weight and layers."""
    around = defaults_of(Term)
    terms = {}
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise InputError(f"objective.{name} must be a term with a _target_, got {node!r}")
        loss = build({key: value for key, value in node.items() if key not in around}, f"objective.{name}")
        with placed(f"objective.{name}"):
            terms[name] = Term(loss, **{key: node[key] for key in around if key in node})
    return Objective(terms)


def optim(node: Config) -> Optim:
    """The optimiser's maker and its schedule."""
    around = defaults_of(Optim)
    make = build({key: value for key, value in node.items() if key not in around}, "optim", partial=True)
    with placed("optim"):
        make([nn.Parameter(torch.zeros(1))])  # its own checks, now rather than after the teacher has been trained
        return Optim(make, **{key: node[key] for key in around if key in node})


def distiller(config: Config, data: Any, teacher: Frozen | None) -> Distiller:
    """Student and objective, made anew from the run's seed, around the teacher."""
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    student = network(config["student"], "student", data)
    terms = objective(config["objective"])
    for name, term in terms.named_terms():
        if term.start >= config["trainer"].get("max_epochs", math.inf):
            raise InputError(f"objective.{name}.start={term.start} is after the run's last epoch; see init_epochs")
    if isinstance(data, Data):
        labels = data.memory.parts["train"][1]
        terms.tell("attach_data", len(labels), labels)
    kept = {"config": dict(config)}
    return Distiller(student, teacher, terms, optim(config["optim"]), data.shape, data.classes, config["T"], kept)


def trainer(config: Config, folder: Path, record: Callback) -> pl.Trainer:
    """Lightning's trainer with the configured callbacks and loggers, which write into the run folder."""
    places: dict[str, Any] = {
        "save_dir": str(folder),
        "dirpath": str(folder / "checkpoints"),
        "hyperparameters": hyperparameters(config),
    }
    callbacks = [build(node, f"callbacks.{key}", **places) for key, node in config["callbacks"].items() if node]
    loggers = [build(node, f"logger.{key}", **places) for key, node in config["logger"].items() if node]
    bar = config["trainer"].get("enable_progress_bar", True)
    useless = (() if bar else (ProgressBar,)) + (() if loggers else (LearningRateMonitor,))
    callbacks = [callback for callback in callbacks if not isinstance(callback, useless)]
    trainer = build(config["trainer"], "trainer", partial=True)
    with placed("trainer"):
        try:
            return trainer(callbacks=[record, *callbacks], logger=loggers or False, default_root_dir=str(folder))
        except MisconfigurationException as error:
            raise InputError(str(error)) from error


def teacher(config: Config, data: Any) -> Frozen | None:
    """The frozen teacher, still without its weights: everything else is checked before they are made."""
    node = config["teacher"] or {}
    if not node.get("_target_"):
        return None
    return Frozen(network({**node, "checkpoint": None}, "teacher", data))


def hyperparameters(config: Config) -> dict[str, Any]:
    """What the HPARAMS tab shows: the root keys, the networks' names and the options of what shapes the result."""
    shown = {key: config[key] for key in ("T", "alpha", "seed")}
    for side in ("student", "teacher"):
        node = config[side] or {}
        shown[side] = run.name_of(node) if node.get("_target_") else "none"
    for group in ("objective", "optim", "data"):
        shown |= _flat(config[group], f"{group}.")
    shown["trainer.max_epochs"] = config["trainer"].get("max_epochs")
    return shown


def _flat(config: Config, prefix: str) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            shown |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)) and value != "" and key != "_target_":
            shown[f"{prefix}{key}"] = value
    return shown
