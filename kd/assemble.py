"""From configuration to objects: each function makes one part of a run out of plain containers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from kd import run
from kd.cached import Cached, Store, cached
from kd.checkpoints import WholeFiles
from kd.classes import realign
from kd.curves import continued
from kd.data.memory import Memory
from kd.data.module import Data
from kd.data.own import adopted
from kd.distiller import Distiller
from kd.dot import DOTDistiller, check_trainer
from kd.errors import InputError, placed, unknown
from kd.from_run import check_network
from kd.identity import answers_key, files_of
from kd.living import DISTILLERS, lives
from kd.models.check import check
from kd.models.normalized import Normalized, bare
from kd.models.weights import Origin, fingerprint, outputs_of, prepare
from kd.modes import mode_of
from kd.moving import Moving
from kd.mutual import nodes_of
from kd.objective import Objective, Term
from kd.optim import DOT, Optim
from kd.origin import origin, shuffled, unfilled
from kd.registry import build, defaults_of, split, target_of
from kd.speed import Quick, Speed
from kd.teacher import Ensemble, Frozen

Config = Mapping[str, Any]
Teacher = Frozen | Cached | Ensemble


def data(config: Config) -> Any:
    """The data module: a source's arrays in memory, or the user's own LightningDataModule."""
    node = config["data"]
    own, around = split(node, "data", Memory)
    pl.seed_everything(config["seed"], workers=True, verbose=False)  # a source of one's own may draw a split
    source = build(own, "data", seed=config["seed"])
    if isinstance(source, pl.LightningDataModule):
        if unused := sorted(around):
            raise InputError(f"data.{unused[0]} is for data in memory; {type(source).__name__} has no such option")
        with placed("data"):
            return source if getattr(source, "checked", False) else adopted(source, config["seed"])
    with placed("data"):
        return Data(Memory(source, **around), config["seed"])


def network(node: Config, at: str, data: Any, classes: int | None = None, *around: Any) -> Normalized:
    """A network for the data, with its normalisation in front, tried on two images.

    It is for the data's classes unless others are said.

    ``around`` are functions whose parameters the node may have besides those of :func:`prepare`.
    """
    fitted = untried(node, at, data, classes, *around)
    check(fitted, at, run.title_of(node), data.shape, classes or data.classes, frozen=Origin in around)
    return fitted


def untried(node: Config, at: str, data: Any, classes: int | None = None, *around: Any) -> Normalized:
    """The same as :func:`network`, before it is tried."""
    mean = getattr(data, "mean", None) or [0.0] * data.shape[0]
    std = getattr(data, "std", None) or [1.0] * data.shape[0]
    own, extra = split(node, at, prepare, *around)
    options = {key: value for key, value in extra.items() if key in defaults_of(prepare)}
    return run.network_of(own, at, classes or data.classes, list(data.shape), mean, std, **options)


def objective(nodes: Config) -> Objective:
    """The terms, each a loss with its weight and layers."""
    terms = {}
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise InputError(f"objective.{name} must be a term with a _target_, got {node!r}")
        if "_target_" not in node:
            known = [f"objective.{key}" for key, other in nodes.items() if "_target_" in (other or ())]
            raise unknown("key", f"objective.{name}", known)
        own, around = split(node, f"objective.{name}", Term)
        loss = build(own, f"objective.{name}")
        with placed(f"objective.{name}"):
            terms[name] = Term(loss, **around)
    return Objective(terms)


def optim(node: Config) -> Optim:
    """The optimiser's maker and its schedule."""
    own, around = split(node, "optim", Optim)
    make = build(own, "optim", partial=True)
    with placed("optim"):
        make([nn.Parameter(torch.zeros(1))])  # its own checks, now rather than after the teacher has been trained
        return Optim(make, **around)


def distiller(config: Config, data: Any, teacher: Teacher | None) -> Distiller:
    """Student and objective, made anew from the run's seed, around the teacher."""
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    student = network(config["student"], "student", data)
    realign(student, config["student"], data)
    terms = objective(config["objective"])
    for name, term in terms.named_terms():
        if term.start >= config["trainer"].get("max_epochs", math.inf):
            raise InputError(f"objective.{name}.start={term.start} is after the run's last epoch; see init_epochs")
    terms.check_epochs(config["trainer"].get("max_epochs"))
    labels = getattr(data, "train_labels", None)
    if labels is not None:
        terms.check_labels(bool((labels < 0).any()), getattr(data, "mixed", False))
        if (labels < 0).all() and all("labels" in term.needs for _, term in terms.named_terms()):
            raise InputError("no training image has a label, and every term of the objective needs one")
        terms.tell("attach_data", len(labels), labels)
    settings = {"config": dict(config), "files": files_of({"student": config["student"]})}
    shuffle = shuffled(config["teacher"])
    optimiser = optim(config["optim"])
    apart = terms.uses_teacher and config["optim"]["_target_"] == target_of(DOT)
    if apart:
        course = config["trainer"]
        check_trainer(course.get("gradient_clip_val"), course.get("precision"), speed(config).compile)
    rest = (terms, optimiser, data.shape, data.classes, config["T"], settings, shuffle)
    if lives(node := config["teacher"]):
        if apart:
            raise InputError(f"optim=dot needs a teacher that does not change, not teacher={teacher_name(node)}")
        return DISTILLERS[node["_target_"]](student, _living(node, student, data), *rest)
    return (DOTDistiller if apart else Distiller)(student, teacher, *rest)


def _living(node: Config, student: nn.Module, data: Any) -> nn.Module:
    """A teacher that changes with the student: made from it, or of other students."""
    wrapper = ["name", "peers", "min_accuracy", "trainer"]  # the last two are said by debug= for any teacher
    wrapper += ["shuffle"] if node["_target_"] == target_of(Moving) else []
    made = build({key: value for key, value in node.items() if key not in wrapper}, "teacher", partial=True)
    with placed("teacher"):
        if "peers" not in node:
            return made(student)
        peers = {name: network(peer, f"teacher.peers.{name}", data) for name, peer in members(node).items()}
        if same := [name for name, peer in peers.items() if fingerprint(bare(peer)) == fingerprint(bare(student))]:
            raise InputError(f"peers.{same[0]} has the student's own weights, so that neither could teach the other")
        return made(peers)


def trainer(config: Config, folder: Path, own: Sequence[Callback], step: int = 0) -> pl.Trainer:
    """Lightning's trainer with kd's own and the configured callbacks and loggers, which write into the run folder.

    ``step`` is the optimiser step from which a run goes on.
    """
    places: dict[str, Any] = {
        "save_dir": str(folder),
        "dirpath": str(folder / "checkpoints"),
        "hyperparameters": hyperparameters(config),
        "purge_step": step,
    }
    callbacks = [_callback(node, f"callbacks.{key}", places) for key, node in config["callbacks"].items() if node]
    loggers = [build(node, f"logger.{key}", **places) for key, node in config["logger"].items() if node]
    for logger in loggers:
        if isinstance(logger, CSVLogger) and step:
            continued(logger, step)
    bar = config["trainer"].get("enable_progress_bar", True)
    useless = (() if bar else (ProgressBar,)) + (() if loggers else (LearningRateMonitor,))
    callbacks = [callback for callback in callbacks if not isinstance(callback, useless)]
    trainer, quick = build(config["trainer"], "trainer", partial=True), Quick(speed(config))
    with placed("trainer"):
        try:
            return trainer(
                callbacks=[*own, quick, *callbacks],  # whether a teacher can teach comes before how fast it does
                logger=loggers or False,
                default_root_dir=str(folder),
                plugins=[WholeFiles(config)],
            )
        except (MisconfigurationException, ImportError) as error:
            raise InputError(str(error)) from error


def _callback(node: Config, at: str, places: dict[str, Any]) -> Callback:
    """One callback; where it monitors a metric, in the mode that is the metric's, as Lightning's default is ``min``."""
    mode = mode_of(node["monitor"]) if node.get("monitor") else None
    return build(node, at, **places | ({"mode": mode} if mode else {}))


def speed(config: Config) -> Speed:
    """The switches that make a step faster; their defaults where a configuration has none."""
    return Speed(**(config.get("speed") or {}))


def members(node: Config | None) -> dict[str, Config]:
    """The networks of the teacher's node by name: of an ensemble its members, of one teacher itself under ``""``."""
    if not node or not node.get("_target_"):
        return {}
    if "peers" in node:
        return dict(nodes_of(node["peers"]))
    return {"": node} if "members" not in node else dict(node["members"])


def teacher(config: Config, data: Any, weights: bool = True, cache: bool = False) -> Teacher | None:
    """The frozen teacher, each network with a table of its answers if ``cache``.

    With ``weights=False`` none are loaded, so that all else is checked before they are made.
    """
    node = config["teacher"]
    if lives(node):
        return None  # it is made with the student
    found: dict[str, Frozen | Cached] = {}
    for name, member in members(node).items():
        frozen = _frozen(member if weights else unfilled(member, place(name)), place(name), data, member)
        found[name] = _cached(config, name, frozen, data) if cache else frozen
    if not found or "" in found:
        return found.get("")
    options = {
        key: value for key, value in node.items() if key not in ("members", "min_accuracy", "shuffle", "trainer")
    }
    return build(options, "teacher", members=found)


def _cached(config: Config, name: str, frozen: Frozen, data: Any) -> Frozen | Cached:
    node = members(config["teacher"])[name]
    with placed("cache"):
        store = Store(**config["cache"])
    precision = speed(config).cached_as(str(config["trainer"].get("precision", "32-true")))
    table = origin(node, place(name)).get("cache", "auto")
    return cached(frozen, data, table, store, run.name_of(node), precision, answers_key(node))


def min_accuracies(node: Config | None) -> dict[str, float | None]:
    """The least accuracy asked of the teacher, under ``""``, and of each member of an ensemble; None if not said."""
    if lives(node):
        return {"": None}
    asked = {name: origin(member, place(name)).get("min_accuracy") for name, member in members(node).items()}
    return {"": (node or {}).get("min_accuracy"), **asked}


def place(name: str) -> str:
    """Where a member's node stands in the configuration."""
    return f"teacher.members.{name}" if name else "teacher"


def _frozen(node: Config, at: str, data: Any, asked: Config) -> Frozen:
    check_network(asked, at)
    options = origin(asked, at)
    classes, outputs = options.get("classes"), options.get("outputs")
    if classes is not None:
        if len(classes) != data.classes:
            raise InputError(f"{at}.classes picks {len(classes)} columns, but the data has {data.classes} classes")
        if outputs is None and asked.get("checkpoint"):
            fresh = bare(network(unfilled(node, at), at, data, None, Origin))
            outputs = outputs_of(fresh, asked["checkpoint"], asked.get("checkpoint_key"))
        if outputs is None:
            raise InputError(f"{at}.outputs must say how many classes the teacher knows, as {at}.classes picks some")
    with placed(at):
        return Frozen(network(node, at, data, outputs, Origin), classes)


def hyperparameters(config: Config) -> dict[str, Any]:
    """What the HPARAMS tab shows: the root keys, the networks' names and the options of what shapes the result."""
    shown = {key: config[key] for key in ("T", "alpha", "seed")}
    shown |= {"student": run.name_of(config["student"]), "teacher": teacher_name(config["teacher"]) or "none"}
    for group in ("objective", "optim", "data"):
        shown |= _flat(config[group], f"{group}.")
    shown["trainer.max_epochs"] = config["trainer"].get("max_epochs")
    return shown


def teacher_name(node: Config | None) -> str:
    """What the teacher is called: an ensemble by its members."""
    return "+".join(name or run.name_of(member) for name, member in members(node).items())


def _flat(config: Config, prefix: str) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            shown |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)) and value != "" and key != "_target_":
            shown[f"{prefix}{key}"] = value
    return shown
