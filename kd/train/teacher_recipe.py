"""Whether a teacher is trained first, and the configuration of the run that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

import kd
from kd.callbacks.modes import mode_of
from kd.distill.identity import MACHINE, STEP, WATCHING
from kd.distill.spec import MemberSpec
from kd.distill.teacher_options import TeacherOptions
from kd.errors import InputError
from kd.models.check import quietly
from kd.models.normalized import InputSpec, unwrap
from kd.models.weights import fingerprint, prepare
from kd.registry import current, models, split
from kd.train import assemble

Config = Mapping[str, Any]
STAGE = ("init", "init_lr")  # options of a student's pre-training, which a teacher does not have


def has_weights(member: MemberSpec, data: Any) -> bool:
    """Whether a teacher is used as it is: it has weights, or ``train=false`` or ``epochs=0`` is set.

    A network that a custom function returns in eval mode counts as trained.

    Args:
        member: the teacher, or a member of an ensemble.
        data: the data module on which it would be trained.

    Raises:
        InputError: contradictory options, or a teacher without weights whose classes differ from the data's.
    """
    options, node, at = check(member), member.node, member.key
    if options.get("checkpoint"):
        return True
    train = False if options.get("epochs") == 0 else options.get("train")
    if train is None:
        if node.get("weights") or node.get("pretrained"):
            return True
        with quietly():
            train = unwrap(assemble.untried(node, at, data, options.get("outputs"), TeacherOptions)).training
    if train and (options.get("classes") is not None or options.get("outputs") not in (None, data.classes)):
        key = "classes" if options.get("classes") is not None else "outputs"
        raise InputError(
            f"{at}.{key} is for a teacher with other classes than the data; this one has no weights, so it is "
            f"trained on the data's {data.classes} classes: give {at}.checkpoint, or leave {at}.{key} out"
        )
    return not train


def check(member: MemberSpec) -> dict[str, Any]:
    """A teacher's options.

    Raises:
        InputError: options of its training that contradict each other or are out of range.
    """
    options, at = member.options(), member.key
    epochs, train = options.get("epochs"), options.get("train")
    if epochs is not None and epochs < 0:
        raise InputError(f"{at}.epochs={epochs} must be a whole number of at least 0; 0 uses the teacher as it is")
    if train and epochs == 0:
        raise InputError(f"{at}.train=true and {at}.epochs=0 exclude each other")
    if train and options.get("checkpoint"):
        raise InputError(f"{at}.train=true and {at}.checkpoint exclude each other: a checkpoint is not trained further")
    return options


def recipe_of(config: Config) -> dict[str, Any]:
    """The configuration of the run that trains the teacher of ``config``.

    It shares the trainer options that define a step and the machine. It has its own length, ``teacher.epochs``, by
    default the root ``epochs``, its own ``teacher.trainer``, and kd's default callbacks.
    """
    network, options = split(config["teacher"], "teacher", prepare, TeacherOptions)
    network |= {key: options[key] for key in (*InputSpec._fields, "output") if key in options}
    epochs = options.get("epochs") or config["epochs"]
    optim = options.get("optim") or {**config["optim"], **{key: None for key in STAGE if key in config["optim"]}}
    trainer = {key: value for key, value in config["trainer"].items() if key in (*STEP, *MACHINE)}
    trainer |= {"max_epochs": epochs, **(options.get("trainer") or {})}
    plain = {"T": 1.0, "alpha": 0.0, "epochs": epochs, "init_epochs": 1, "pair": {}, "cell": None, "cache": {}}
    return dict(config) | {
        **plain,  # nothing of the student's distillation affects the teacher
        "speed": {**(config.get("speed") or {}), "teacher_precision": "auto"},
        "task": "teacher",
        "student": network,
        "teacher": None,
        "data": {**config["data"], **(options.get("data") or {})},
        "objective": {"ce": {"_target_": "kd.losses.CE", "weight": 1.0}},
        "optim": optim,
        "callbacks": _callbacks(config),
        "seed": options.get("seed") or 0,
        "trainer": trainer,
    }


def start_of(recipe: Config, data: Any) -> str | None:
    """sha256 of a custom network's initial weights, which its code may load from anywhere.

    None for networks registered with kd, which their options identify.
    """
    if models.is_registered(recipe["student"]["_target_"]):
        return None
    pl.seed_everything(recipe["seed"], workers=True, verbose=False)
    return fingerprint(unwrap(assemble.network(recipe["student"], "teacher", data)))


def _callbacks(config: Config) -> dict[str, Any]:
    """kd's default callbacks; those that only monitor keep the run's options."""
    callbacks = config["callbacks"]
    return {
        key: callbacks.get(key) if node["_target_"] in WATCHING and _same(callbacks.get(key), node) else node
        for key, node in _defaults(config.get("nan", "stop")).items()
    }


def _same(configured: Any, node: Config) -> bool:
    if configured is None:
        return True
    return isinstance(configured, Mapping) and current(str(configured.get("_target_"))) == node["_target_"]


@cache
def _defaults(nan: str) -> dict[str, dict[str, Any]]:
    text = (Path(kd.CONFIG_DIR) / "callbacks/default.yaml").read_text()
    nodes = yaml.safe_load(text.replace("${nan}", nan))
    return {
        key: {**node, "mode": mode_of(node["monitor"])} if "monitor" in node else node for key, node in nodes.items()
    }
