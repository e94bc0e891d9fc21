"""Builds the objects of a run from its configuration, given as plain containers; one function for each object."""

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

from kd.callbacks.checkpoint import AtomicCheckpointIO
from kd.callbacks.curves import keep_rows
from kd.callbacks.modes import mode_of
from kd.callbacks.position import Position
from kd.callbacks.speed import ApplySpeed, Speed
from kd.data.custom import adopted
from kd.data.datamodule import Data, ImageData, image_data
from kd.data.memory import Memory
from kd.distill.cached import Cached, CacheOptions, cached
from kd.distill.distiller import Distiller
from kd.distill.dot import check_trainer
from kd.distill.ensemble import Ensemble
from kd.distill.identity import answers_key, files_of
from kd.distill.mean_teacher import MeanTeacher
from kd.distill.methods import distiller_for
from kd.distill.objective import Objective, Term
from kd.distill.spec import MemberSpec, TeacherSpec
from kd.distill.teacher import Frozen
from kd.distill.teacher_options import TeacherOptions
from kd.errors import InputError, located, unknown
from kd.models.check import check
from kd.models.names import name_of, title_of
from kd.models.normalized import Normalized, unwrap
from kd.models.weights import fingerprint, outputs_of, prepare
from kd.optim import DOT, Optim
from kd.registry import build, defaults_of, is_node_of, nested, split
from kd.run_folder.classes import realign
from kd.run_folder.from_run import check_network
from kd.run_folder.network import network_of

Config = Mapping[str, Any]
Teacher = Frozen | Cached | Ensemble


def data(config: Config) -> ImageData:
    """The data module: a source's arrays in memory, or a custom LightningDataModule."""
    node = config["data"]
    source_node, memory_options = split(node, "data", Memory)
    pl.seed_everything(config["seed"], workers=True, verbose=False)  # a custom source may draw a random split
    source = build(source_node, "data", seed=config["seed"])
    if isinstance(source, pl.LightningDataModule):
        if unused := sorted(memory_options):
            raise InputError(f"data.{unused[0]} is for data in memory; {type(source).__name__} has no such option")
        with located("data"):
            return image_data(source if image_data(source).checked else adopted(source, config["seed"]))
    with located("data"):
        return Data(Memory(source, **memory_options), config["seed"])


def network(node: Config, at: str, data: ImageData, classes: int | None = None, *wrappers: Any) -> Normalized:
    """A network for the data, with its normalisation in front, checked on two images.

    Args:
        node: the network's configuration node.
        at: its key in the configuration, for messages.
        data: supplies image shape, mean, standard deviation and classes.
        classes: number of outputs; by default the data's classes.
        wrappers: functions whose parameters the node may contain besides those of :func:`prepare`.

    Raises:
        InputError: an unknown option, or a network that fails on the data's images.
    """
    module = untried(node, at, data, classes, *wrappers)
    check(module, at, title_of(node), data.shape, classes or data.classes, frozen=TeacherOptions in wrappers)
    return module


def untried(node: Config, at: str, data: ImageData, classes: int | None = None, *wrappers: Any) -> Normalized:
    """Like :func:`network`, without the check on two images."""
    data = image_data(data)
    mean = data.mean or [0.0] * data.shape[0]
    std = data.std or [1.0] * data.shape[0]
    network_node, extra = split(node, at, prepare, *wrappers)
    options = {key: value for key, value in extra.items() if key in defaults_of(prepare)}
    return network_of(network_node, at, classes or data.classes, list(data.shape), mean, std, **options)


def objective(nodes: Config) -> Objective:
    """The objective, from its terms: each a loss with its weight and layers."""
    terms = {}
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise InputError(f"objective.{name} must be a term with a _target_, got {node!r}")
        if "_target_" not in node:
            present = [f"objective.{key}" for key, other in nodes.items() if "_target_" in (other or ())]
            raise unknown("key", f"objective.{name}", present)
        loss_node, term_options = split(node, f"objective.{name}", Term)
        loss = build(loss_node, f"objective.{name}")
        with located(f"objective.{name}"):
            terms[name] = Term(loss, **term_options)
    return Objective(terms)


def optim(node: Config) -> Optim:
    """The optimiser's factory and its schedule."""
    optimiser_node, schedule_options = split(node, "optim", Optim)
    make = build(optimiser_node, "optim", partial=True)
    with located("optim"):
        make([nn.Parameter(torch.zeros(1))])  # fails on invalid options now, not after the teacher's training
        return Optim(make, **schedule_options)


def distiller(config: Config, data: ImageData, teacher: Teacher | None) -> Distiller:
    """The distiller for a teacher, with a student and an objective initialised from the run's seed."""
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    student = network(config["student"], "student", data)
    realign(student, config["student"], data)
    terms = objective(config["objective"])
    for name, term in terms.named_terms():
        if term.start >= config["trainer"].get("max_epochs", math.inf):
            raise InputError(f"objective.{name}.start={term.start} is after the run's last epoch; see init_epochs")
    terms.check_epochs(config["trainer"].get("max_epochs"))
    labels = data.train_labels
    if labels is not None:
        terms.check_labels(bool((labels < 0).any()), data.mixed)
        if (labels < 0).all() and all("labels" in term.needs for _, term in terms.named_terms()):
            raise InputError("no training image has a label, and every term of the objective needs one")
        terms.attach_data(len(labels), labels)
    settings = {"config": dict(config), "files": files_of({"student": config["student"]})}
    spec, optimiser = TeacherSpec.parse(config["teacher"]), optim(config["optim"])
    apart = terms.uses_teacher and is_node_of(config["optim"], DOT)
    if apart:
        options = config["trainer"]
        check_trainer(options.get("gradient_clip_val"), options.get("precision"), speed(config).compile)
    if spec.online:
        if apart:
            raise InputError(f"optim=dot needs a frozen teacher, not teacher={name_of(spec.node)}")
        teacher = _online(spec, student, data)
    kind = distiller_for(spec.node, apart)
    return kind(student, teacher, terms, optimiser, data.shape, data.classes, config["T"], settings, spec.shuffle)


def _online(spec: TeacherSpec, student: nn.Module, data: ImageData) -> Any:
    """A teacher that changes with the student: its average, or its peers."""
    wrapper = ["name", "peers", "min_accuracy", "trainer"]  # debug= sets the last two for every teacher
    wrapper += ["shuffle"] if is_node_of(spec.node, MeanTeacher) else []
    make = build({key: value for key, value in spec.node.items() if key not in wrapper}, "teacher", partial=True)
    with located("teacher"):
        if "peers" not in spec.node:
            return make(student)
        peers = {peer.name: network(peer.node, peer.key, data) for peer in spec.members}
        if same := [name for name, peer in peers.items() if fingerprint(unwrap(peer)) == fingerprint(unwrap(student))]:
            raise InputError(f"peers.{same[0]} has the same weights as the student, so neither would learn anything")
        return make(peers)


def trainer(config: Config, folder: Path, first_callbacks: Sequence[Callback], step: int = 0) -> pl.Trainer:
    """Lightning's trainer with kd's callbacks and the configured callbacks and loggers, writing into the run folder.

    ``step`` is the optimiser step from which the run resumes, 0 for a new run.
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
            keep_rows(logger, step)
    bar = config["trainer"].get("enable_progress_bar", True)
    unused = (() if bar else (ProgressBar,)) + (() if loggers else (LearningRateMonitor,))
    callbacks = [callback for callback in callbacks if not isinstance(callback, unused)]
    trainer, quick = build(config["trainer"], "trainer", partial=True), ApplySpeed(speed(config))
    with located("trainer"):
        try:
            return trainer(
                callbacks=[*first_callbacks, Position(), quick, *callbacks],  # the gate before ApplySpeed
                logger=loggers or False,
                default_root_dir=str(folder),
                plugins=[AtomicCheckpointIO(config)],
            )
        except (MisconfigurationException, ImportError) as error:
            raise InputError(str(error)) from error


def _callback(node: Config, at: str, places: dict[str, Any]) -> Callback:
    """One callback. A monitored metric sets ``mode``, whose default in Lightning is ``min`` for every metric."""
    mode = mode_of(node["monitor"]) if node.get("monitor") else None
    return build(node, at, **places | ({"mode": mode} if mode else {}))


def speed(config: Config) -> Speed:
    """The options that make a step faster, with defaults for those that the configuration lacks."""
    return Speed(**(config.get("speed") or {}))


def teacher(config: Config, data: ImageData, weights: bool = True, cache: bool = False) -> Teacher | None:
    """The frozen teacher, None if there is none or it changes with the student.

    Args:
        config: the run's configuration.
        data: the data module.
        weights: whether to load the weights. Without them, the rest is checked before a teacher is trained.
        cache: whether each network gets a table of its logits.
    """
    spec = TeacherSpec.parse(config["teacher"])
    if spec.online:
        return None  # the distiller builds it from the student
    members: dict[str, Frozen | Cached] = {}
    for member in spec.members:
        frozen = _frozen(member, data, weights)
        members[member.name] = _cached(config, member, frozen, data) if cache else frozen
    if spec.kind != "ensemble":
        return members.get("")
    return build(spec.ensemble_options(), "teacher", members=members)


def _cached(config: Config, member: MemberSpec, frozen: Frozen, data: ImageData) -> Frozen | Cached:
    with located("cache"):
        store = CacheOptions(**config["cache"])
    precision = speed(config).cached_as(str(config["trainer"].get("precision", "32-true")))
    table = member.options().get("cache", "auto")
    return cached(frozen, data, table, store, name_of(member.node), precision, answers_key(member.node))


def _frozen(member: MemberSpec, data: ImageData, weights: bool) -> Frozen:
    at, configured = member.key, member.node
    node = configured if weights else member.without_weights()
    check_network(configured, at)
    options = member.options()
    classes, outputs = options.get("classes"), options.get("outputs")
    if classes is not None:
        if len(classes) != data.classes:
            raise InputError(f"{at}.classes selects {len(classes)} columns, but the data has {data.classes} classes")
        if outputs is None and configured.get("checkpoint"):
            fresh = unwrap(network(member.without_weights(), at, data, None, TeacherOptions))
            outputs = outputs_of(fresh, configured["checkpoint"], configured.get("checkpoint_key"))
        if outputs is None:
            raise InputError(f"{at}.classes also needs {at}.outputs: the number of classes of the teacher")
    with located(at):
        return Frozen(network(node, at, data, outputs, TeacherOptions), classes)


def hyperparameters(config: Config) -> dict[str, Any]:
    """Values for TensorBoard's HPARAMS tab: the root keys, the networks' names, and the options of objective, optimiser
    and data."""
    parameters = {key: config[key] for key in ("T", "alpha", "seed")}
    parameters |= {
        "student": name_of(config["student"]),
        "teacher": TeacherSpec.parse(config["teacher"]).display_name or "none",
    }
    for group in ("objective", "optim", "data"):
        options = nested.flatten(config[group], group)
        parameters |= {key: value for key, value in options.items() if _is_shown(key, value)}
    parameters["trainer.max_epochs"] = config["trainer"].get("max_epochs")
    return parameters


def _is_shown(key: str, value: Any) -> bool:
    plain = isinstance(value, (bool, int, float, str)) and value != ""
    return plain and key.rpartition(".")[2] != "_target_"
