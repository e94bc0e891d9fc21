"""Digests that identify trained teachers, tables of logits, runs and studies: everything that affects their content.

What affects only rounding is excluded: accelerator, strategy, ``deterministic``, ``speed`` (except the precision of a
teacher's logits) and the versions of torch and Lightning. A change of kd that trains differently from the same
configuration increments :data:`RULE`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from kd.data.datamodule import image_data
from kd.distill.source import code_of, code_of_classes, content_of, with_content
from kd.distill.teacher_options import TeacherOptions
from kd.errors import InputError
from kd.models.normalized import InputSpec
from kd.models.weights import prepare
from kd.registry import first, nested, split, with_current

Config = Mapping[str, Any]

RULE = 2  # 1 did not include callbacks, devices and the source of the user's code

# Keys that do not affect a run's result: where it runs, where files are, what is displayed and what is only checked.
INERT = (
    *("task", "cell", "about", "resume", "resume_data", "trust", "teachers", "logger", "cache.root", "cache.max_gb"),
    *("data.root", "data.download", "data.workers", "data.eval_batch_size", "data.resident"),
    *("teacher.min_accuracy", "teacher.members.*.min_accuracy", "speed.min_agreement"),
    *("speed.channels_last", "speed.fold", "speed.compile", "speed.recompute"),
    *("trainer.accelerator", "trainer.strategy", "trainer.deterministic", "trainer.benchmark"),
    *("trainer.num_sanity_val_steps", "trainer.log_every_n_steps", "trainer.enable_progress_bar"),
    *("trainer.enable_model_summary", "trainer.profiler", "trainer.detect_anomaly", "trainer.inference_mode"),
    *("trainer.limit_predict_batches", "trainer.enable_autolog_hparams", "trainer.model_registry", "trainer.logger"),
    "trainer.default_root_dir",
)
# Callbacks that do not affect the training or the weights that are kept.
WATCHING = (
    *(
        "kd.callbacks.Last",
        "kd.callbacks.ProgressBar",
        "kd.callbacks.Charts",
        "kd.callbacks.Throughput",
        "kd.callbacks.Pictures",
    ),
    "kd.callbacks.AtChance",
    *(
        f"pytorch_lightning.callbacks.{name}"
        for name in ("LearningRateMonitor", "DeviceStatsMonitor", "RichProgressBar", "TQDMProgressBar")
    ),
    *("pytorch_lightning.callbacks.ModelSummary", "pytorch_lightning.callbacks.RichModelSummary"),
)
# Keys that may differ when a run is resumed: where it runs and how long. The files of its initial weights and of its
# teacher may have been moved, so their content is compared instead.
RESUMABLE = (
    *("epochs", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    *("trainer.devices", "trainer.num_nodes"),
    *("teacher.checkpoint", "teacher.members.*.checkpoint", "student.checkpoint", "callbacks", "nan"),
    *("data.root", "data.download", "data.workers"),
)

# Options of Lightning's trainer that a teacher's training inherits from the run; only those in STEP affect its result.
STEP = (
    *("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm"),
    *("devices", "num_nodes", "use_distributed_sampler", "reload_dataloaders_every_n_epochs", "plugins", "_target_"),
)
MACHINE = (
    *("accelerator", "strategy", "deterministic", "benchmark", "num_sanity_val_steps"),
    *("log_every_n_steps", "enable_progress_bar", "enable_model_summary", "profiler", "detect_anomaly"),
    *("inference_mode",),
)
SHORT = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def teacher_key(recipe: Config, data: Any, start: str | None = None) -> str:
    """16 hex digits that identify the run that trains a teacher.

    They cover the network with the user's code, its library's version and the files that it names, the data's
    content and augmentation, the optimiser, the trainer's options, the seed and ``nan``.

    Args:
        recipe: that run's configuration, from :func:`kd.train.teacher_recipe.recipe_of`.
        data: its data module.
        start: sha256 of the network's initial weights, if its options do not determine them.
    """
    network, trainer = recipe["student"], dict(recipe["trainer"])
    training = {key: value for key, value in trainer.items() if key not in MACHINE and value is not None}
    training |= {"precision": _precision(trainer), "devices": _count(trainer.get("devices"))}
    parts = {
        "rule": RULE,
        "network": {**network_key(network), "start": start},
        "data": data_key(recipe["data"], data),
        "optim": [with_content(recipe["optim"]), code_of(recipe["optim"])],
        "trainer": [training, code_of(trainer)],
        "seed": recipe["seed"],
        "nan": recipe.get("nan", "stop"),
    }
    return digest(parts)


def network_key(node: Config) -> dict[str, Any]:
    """What determines a network's output besides its weights: class, options, files, code."""
    network, options = split(node, "teacher", prepare, TeacherOptions)
    return _network_key(network | {key: options[key] for key in (*InputSpec._fields, "output") if key in options})


def answers_key(node: Config) -> dict[str, Any]:
    """The same for a table of logits, whose key contains weights, pixels and columns separately."""
    network, options = split(node, "teacher", prepare, TeacherOptions)
    network = {key: value for key, value in network.items() if key not in ("weights", "pretrained")}
    return _network_key({**network, "output": options.get("output")})


def _network_key(options: Config) -> dict[str, Any]:
    options = {key: value for key, value in options.items() if value is not None}
    return {"options": with_content(options), "code": code_of(options)}


def structure_key(network: nn.Module) -> dict[str, Any]:
    """The same for a network without a configuration: its modules' classes and plain attributes, and their code."""
    modules = {name: _plain(module) for name, module in network.named_modules()}
    return {"modules": digest(modules), "code": code_of_classes({type(module) for module in network.modules()})}


def data_key(node: Config, data: Any) -> dict[str, Any]:
    """The data's content, augmentation and options, without :data:`INERT` ones if the content is known."""
    data = image_data(data)
    content = data.describe().get("sha256")
    places = {key.removeprefix("data.") for key in INERT if key.startswith("data.")} if content else set()
    options = {key: value for key, value in node.items() if key not in places and value is not None}
    looks = data.augmentation() if content else None
    pixels = {"mean": _listed(data.mean), "std": _listed(data.std)}
    return {"node": options, "content": content, "augmentation": looks, **pixels, "code": code_of(node)}


def study_key(config: Config, words: Iterable[str], content: str | None) -> str:
    """12 hex digits that identify a comparison: its configuration without the seeds and objectives that it compares.

    Args:
        config: the configuration of a student with a teacher.
        words: overrides shared by all of its runs; only those of objectives are included.
        content: the data's sha256; None if unknown.
    """
    plainly = shaping(config, ("seed", "objective"))
    plainly = {
        key: content_of(value) or value if key.endswith("checkpoint") else value for key, value in plainly.items()
    }
    plainly |= {key: first(value) for key, value in plainly.items() if key.endswith("_target_")}
    overrides = sorted(word for word in words if word.lstrip("+~").startswith(("objective.", "loss@")))
    nodes = [config[group] for group in ("student", "teacher", "data", "optim", "callbacks")]
    return digest([plainly, overrides, content, code_of(nodes)], 12)


def files_of(config: Config) -> dict[str, str]:
    """The files of a run's initial weights and of its teacher: dotted key to the sha256 of the content."""
    digests = {key: content_of(value) for key, value in nested.flatten(config).items() if key.endswith(".checkpoint")}
    return {key: value for key, value in digests.items() if value is not None}


def shaping(config: Config, free: Iterable[str] = ()) -> dict[str, Any]:
    """The options that affect a run's result: dotted key to value, without nulls.

    Args:
        config: a run's configuration.
        free: further keys, or groups of keys, to exclude; ``*`` matches anything.
    """
    config = with_current(config)
    callbacks = config.get("callbacks") or {}
    if isinstance(callbacks, Mapping):
        watching = {
            key for key, node in callbacks.items() if isinstance(node, Mapping) and node.get("_target_") in WATCHING
        }
        config = {**config, "callbacks": {key: node for key, node in callbacks.items() if key not in watching}}
    custom = not str((config.get("data") or {}).get("_target_")).startswith("kd.")  # perhaps without a content hash
    excluded = [*(key for key in INERT if not (custom and key.startswith("data."))), *free]
    flat = {key: value for key, value in nested.flatten(config).items() if value is not None}
    return {key: value for key, value in flat.items() if not matches(key, excluded)}


def differing(here: Config, there: Config, free: Iterable[str] = ()) -> list[tuple[str, Any, Any]]:
    """The keys in which two runs' configurations differ, each with both values."""
    ours, theirs = (shaping(config, tuple(free)) for config in (here, there))
    keys = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return [(key, ours.get(key), theirs.get(key)) for key in keys]


def check_run(config: Config, recorded: Any, path: Any) -> None:
    """Checks that a checkpoint is from a run with this configuration, apart from what may change on resuming.

    Args:
        config: the run's configuration.
        recorded: the configuration in the checkpoint.
        path: the checkpoint, for messages.

    Raises:
        InputError: it is not; the message names the first keys that differ.
    """
    if not isinstance(recorded, Mapping):
        raise InputError(f"{path} does not contain the configuration of its run")
    if apart := differing(config, recorded, RESUMABLE):
        first = ", ".join(f"{key}={saved} (now {value})" for key, value, saved in apart[:3])
        more = f", and {len(apart) - 3} more" if len(apart) > 3 else ""
        raise InputError(f"{path} is from another run: it was trained with {first}{more}")


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted key matches a pattern, or is in a group that does."""
    return any(fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*") for pattern in patterns)


def digest(parts: Any, length: int = 16) -> str:
    """The first ``length`` hex digits of the sha256 of plain containers."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:length]


def _plain(module: nn.Module) -> list[Any]:
    kinds = (bool, int, float, str, type(None), tuple)
    options = {key: value for key, value in vars(module).items() if isinstance(value, kinds)}
    public = {key: value for key, value in options.items() if not key.startswith("_") and key != "training"}
    return [f"{type(module).__module__}.{type(module).__qualname__}", public]


def _precision(trainer: Config) -> str:
    precision = str(trainer.get("precision") or "32-true")
    return SHORT.get(precision, precision)


def _count(devices: Any) -> Any:
    """The number of devices, also if they are listed."""
    if isinstance(devices, (list, tuple)):
        return len(devices)
    return int(devices) if str(devices).isdigit() else devices or "auto"


def _listed(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
