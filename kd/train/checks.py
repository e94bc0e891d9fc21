"""Checks of a configuration's values before any work, so that a wrong one fails at once and not late in the run."""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import StrategyRegistry

from kd.callbacks.modes import mode_of
from kd.data.datamodule import ImageData
from kd.distill.cached import CacheOptions
from kd.distill.identity import SHORT
from kd.distill.metrics import Scores
from kd.distill.mutual import nodes_of
from kd.distill.ressl import MomentumTeacher
from kd.errors import InputError, interval_too_long, located, unknown
from kd.registry import defaults_of, is_node_of, locate
from kd.run_folder.checkpoints import LAST, PREVIOUS

Config = Mapping[str, Any]

ROOT = ("T", "alpha", "seed", "epochs", "teachers", "teacher")
GROUPS = ("cache", "data", "student", "objective", "optim", "trainer", "logger", "callbacks")

# whole-number keys of the trainer and their minimum
LEAST = {
    **dict.fromkeys(("max_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch"), 1),
    **dict.fromkeys(("log_every_n_steps", "num_nodes", "limit_train_batches", "limit_val_batches"), 1),
    "val_check_interval": 1,
    "num_sanity_val_steps": 0,
}
ALL = ("max_steps", "num_sanity_val_steps")  # -1 means all
SHARES = ("limit_train_batches", "limit_val_batches", "val_check_interval")  # fractions if floats
MACHINE = ("accelerator", "devices", "strategy", "precision")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true", "transformer-engine", "transformer-engine-float16")
OURS = ("kd.", "pytorch_lightning.")


def check(config: Config) -> None:
    """Checks the ranges of the root keys and of the keys of trainer and cache.

    Raises:
        InputError: a value out of range, with its key and the allowed values.
    """
    for key in (*ROOT, *GROUPS):
        if key not in config:
            raise InputError(f"{key} must be given")
    if not 0 <= config["alpha"] <= 1:
        near = 1 if config["alpha"] > 1 else 0
        raise InputError(f"alpha={config['alpha']:g} must lie in [0, 1]; the nearest allowed value is alpha={near}")
    if not 0 < config["T"] < math.inf:
        raise InputError(f"T={config['T']:g} must be a finite number above 0; 1 to 8 is usual")
    if not 0 <= config["seed"] < 2**32:
        raise InputError(f"seed={config['seed']} must lie in [0, 2**32)")
    for key in ("epochs", "init_epochs"):
        if config.get(key, 1) < 1:
            raise InputError(f"{key}={config[key]} must be a whole number of at least 1")
    for group in GROUPS:
        if not isinstance(config[group], Mapping):
            raise InputError(f"{group}={config[group]} must be a group of keys; see kd-train --cfg job")
    _check_trainer(config["trainer"])
    for key in config["cache"]:
        if key not in defaults_of(CacheOptions):
            raise unknown("option", f"cache.{key}", [f"cache.{name}" for name in defaults_of(CacheOptions)])
    with located("cache"):
        CacheOptions(**config["cache"])


def check_batches(config: Config, data: ImageData, processes: int) -> None:
    """Checks that every process gets at least one full training batch, also under ``trainer.limit_train_batches``.

    Raises:
        InputError: no training batch, validation after more batches than an epoch has, or a term that starts too late.
    """
    counts = data.counts() if data.batch_size is not None else {}
    if data.batch_size is None or not counts:
        return  # a custom data module
    images, size, share = counts["train"], data.batch_size, config["trainer"].get("limit_train_batches")
    batches = images // (size * processes)
    if not batches:
        raise InputError(f"data.batch_size={size} on {processes} processes exceeds the {images} training images")
    if isinstance(share, float) and int(batches * share) < 1:
        raise InputError(f"trainer.limit_train_batches={share} of {batches} batches is none; {1 / batches:.2g} is one")
    batches = min(batches, share) if isinstance(share, int) else int(batches * (1.0 if share is None else share))
    interval = config["trainer"].get("val_check_interval")
    whole = isinstance(interval, int) and config["trainer"].get("check_val_every_n_epoch") is not None
    if whole and interval > batches:
        raise InputError(interval_too_long(interval, batches))
    _check_starts(config, batches)


def _check_starts(config: Config, batches: int) -> None:
    """Checks that each term starts before ``trainer.max_steps`` ends the run; ``batches`` is their number per epoch."""
    steps = config["trainer"].get("max_steps") or -1
    epochs = math.ceil(steps * (config["trainer"].get("accumulate_grad_batches") or 1) / batches)
    for name, node in config["objective"].items():
        start = node.get("start", 0) if steps > 0 and isinstance(node, Mapping) else 0
        if start and start >= epochs:
            raise InputError(
                f"objective.{name}.start={start}: trainer.max_steps={steps} ends the run in epoch {epochs - 1}, "
                "counted from 0, so the term would have no effect"
            )


def check_monitors(config: Config, classes: int) -> None:
    """Checks the options of callbacks and that the metrics they monitor are logged.

    With a custom callback, which may log anything, metrics are not checked.

    Raises:
        InputError: an unknown metric or mode, or an option of another type.
    """
    nodes = {key: node for key, node in config["callbacks"].items() if isinstance(node, Mapping)}
    teacher = config["teacher"] or {}
    knn = is_node_of(teacher, MomentumTeacher)
    with_teacher = bool(teacher.get("_target_")) and not knn
    names = [f"val/{name}".replace("val/teacher_", "teacher/") for name in Scores(classes, with_teacher).named()]
    names += ["train/loss", "train/acc", "time/images_per_s", *(f"train/{term}" for term in config["objective"])]
    names += ["train/kl", "train/soft_ce", "teacher/entropy"] if with_teacher else []
    names += [f"val/peer_{name}/acc" for name in nodes_of(teacher.get("peers") or ())]
    names += ["val/knn"] if knn else []
    for key, node in nodes.items():
        _check_types(f"callbacks.{key}", node)
        _check_filename(key, node)
        monitor, mode = node.get("monitor"), node.get("mode")
        if mode not in ("min", "max", None) and "monitor" in node:
            raise InputError(f"callbacks.{key}.mode={mode}: {unknown('mode', str(mode), ('min', 'max'))}")
        custom = not all(str(other.get("_target_")).startswith(OURS) for other in nodes.values())
        inner = any(str(monitor).startswith(f"train/{term}/") for term in config["objective"])
        if monitor is not None and monitor not in names and not inner and not custom:
            raise InputError(f"callbacks.{key}.monitor={monitor}: {unknown('metric', str(monitor), names)}")
        if monitor is not None and "mode" in node:
            _check_mode(key, str(monitor), mode)


def _check_types(at: str, node: Config) -> None:
    """Checks the options of a callback of Lightning or kd against its type hints."""
    target = str(node.get("_target_"))
    if not target.startswith(OURS):
        return
    try:
        hints = typing.get_type_hints(locate(":".join(target.rpartition(".")[::2])).__init__)
    except Exception:  # building it reports a failed import; some hints exist for type checkers only
        return
    for name, value in node.items():
        if name in hints and name != "mode" and not _fits(value, hints[name]):  # kd sets the mode by the metric
            raise InputError(f"{at}.{name}={value} must be {_allowed(hints[name])}")


def _check_filename(key: str, node: Config) -> None:
    """Checks that a callback's checkpoints do not overwrite those from which a run resumes."""
    if f"{node.get('filename')}.ckpt" in (LAST, PREVIOUS):
        raise InputError(
            f"callbacks.{key}.filename={node['filename']} is reserved for the checkpoint from which a run resumes; "
            "choose another name"
        )


def _check_mode(key: str, monitor: str, mode: str | None) -> None:
    """Checks that ``mode`` fits the metric: min for a loss, max for an accuracy."""
    better_mode, at = mode_of(monitor), f"callbacks.{key}.mode"
    if mode is None and better_mode is None:
        raise InputError(f"{at} must be given: max if a higher callbacks.{key}.monitor={monitor} is better, else min")
    if mode is not None and better_mode not in (mode, None):
        better = "lower" if better_mode == "min" else "higher"
        raise InputError(f"{at}={mode}: a {better} {monitor} is better; leave it out, or set {at}={better_mode}")


def _check_trainer(node: Config) -> None:
    if node.get("_target_") != "pytorch_lightning.Trainer":
        return
    hints = typing.get_type_hints(pl.Trainer.__init__)
    for key, value in node.items():
        if key in LEAST and value is not None:
            _check_number(key, value)
        elif key in hints and key not in MACHINE and not _fits(value, hints[key]):
            raise InputError(f"trainer.{key}={value} must be {_allowed(hints[key])}")
    clip = node.get("gradient_clip_val")
    if clip is not None and not 0 <= clip < math.inf:
        raise InputError(f"trainer.gradient_clip_val={clip} must be a finite number of at least 0, or null for none")
    every, epochs = node.get("check_val_every_n_epoch"), node.get("max_epochs")
    if epochs is None:
        raise InputError("trainer.max_epochs=null must be a whole number of at least 1")
    if every is not None and every > epochs:
        raise InputError(f"trainer.check_val_every_n_epoch={every} must be at most the run's {epochs} epochs")
    _check_machine(node)


def _check_number(key: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= LEAST[key]
    if whole or (key in SHARES and isinstance(value, float) and 0 < value <= 1) or (key in ALL and value == -1):
        return
    besides = ", or a share in (0, 1]" if key in SHARES else ", or -1 for all" if key in ALL else ""
    raise InputError(f"trainer.{key}={value} must be a whole number of at least {LEAST[key]}{besides}")


def _check_machine(node: Config) -> None:
    """Checks that devices, accelerator, strategy and precision exist on this machine."""
    accelerator, devices = str(node.get("accelerator", "auto")), node.get("devices", "auto")
    accelerators = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    if accelerator not in accelerators:
        raise InputError(f"trainer.accelerator={accelerator}: {unknown('accelerator', accelerator, accelerators)}")
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    available = {"auto": True, "gpu": gpu}
    available |= {name: entry["accelerator"].is_available() for name, entry in AcceleratorRegistry.items()}
    if not available[accelerator]:
        raise InputError(f"trainer.accelerator={accelerator}: torch finds no such device; use trainer=cpu")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not gpu)
    count = int(devices) if str(devices).lstrip("-").isdigit() else None
    most = max(2, os.cpu_count() or 1)
    if count == 0 or (on_cpu and devices != "auto" and (count is None or not 1 <= count <= most)):
        allowed = f"a whole number from 1 to {most}, one process for each" if on_cpu else "a number of devices"
        raise InputError(f"trainer.devices={devices} must be {allowed}, or auto")
    strategy = str(node.get("strategy", "auto"))
    strategies = ("auto", *StrategyRegistry.available_strategies())
    if isinstance(node.get("strategy"), str) and strategy not in strategies and not strategy.startswith("deepspeed"):
        raise InputError(f"trainer.strategy={strategy}: {unknown('strategy', strategy, strategies)}")
    precision = SHORT.get(requested := str(node.get("precision") or "32-true"), requested)
    if precision not in PRECISIONS:
        raise InputError(f"trainer.precision={requested}: {unknown('precision', requested, PRECISIONS)}")
    if precision == "16-mixed" and on_cpu:
        raise InputError(f"trainer.precision={requested} needs a GPU; available: bf16-mixed, 32-true")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type; other values are accepted and left to Lightning."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in arguments
    if arguments and typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if hint is Any or not isinstance(value, (str, int, float, bool, type(None))):
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(hint, type) and type(value) is hint


def _allowed(hint: Any) -> str:
    """The values that a type hint allows, as text for a message."""
    kinds = typing.get_args(hint) or (hint,)
    names = {float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    types = [names[kind] for kind in names if kind in kinds]
    types += ["{_target_: datetime.timedelta, minutes: 10}"] if timedelta in kinds else []
    types += ["a whole number"] if int in kinds and float not in kinds else []
    literals = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
    return " or ".join([*types, *(str(value) for kind in literals for value in typing.get_args(kind))])
