"""The program: configuration in, run folder out. Plain containers only; Hydra stops at ``kd.cli``."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from kd import run
from kd.announce import announce, conclude
from kd.data.memory import Memory
from kd.data.module import Data
from kd.distiller import Distiller
from kd.errors import InputError
from kd.models.normalized import Normalized
from kd.models.weights import save
from kd.monitor import Record
from kd.objective import Objective, Term
from kd.optim import Optim
from kd.registry import build, defaults_of
from kd.teacher import Frozen, Origin

log = logging.getLogger(__name__)

Config = Mapping[str, Any]


def check(config: Config) -> None:
    """The ranges of the root keys.

    Raises:
        InputError: a number out of range.
    """
    if not 0 <= config["alpha"] <= 1:
        near = min(max(config["alpha"], 0), 1)
        raise InputError(f"alpha={config['alpha']:g} must lie in [0, 1]; the nearest that does is alpha={near}")
    if not 0 < config["T"] < math.inf:
        raise InputError(f"T={config['T']:g} must be a finite number above 0; 1 to 8 is usual")
    if not 0 <= config["seed"] < 2**32:
        raise InputError(f"seed={config['seed']} must lie in [0, 2**32)")
    for key, value in (("epochs", config["epochs"]), ("trainer.max_epochs", config["trainer"].get("max_epochs"))):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{key}={value} must be a whole number of at least 1")


def train(config: Config, folder: Path) -> dict[str, Any]:
    """One run: teacher (trained first if it has no checkpoint), student, fit, test, summary.

    Args:
        config: the composed configuration as plain containers.
        folder: the run folder, made if absent.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        InputError: anything in the configuration that cannot work.
    """
    check(config)
    folder.mkdir(parents=True, exist_ok=True)
    run.write(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    data = make_data(config)
    teacher = make_teacher(config, data)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    student = make_network(config["student"], "student", data)
    distiller = Distiller(
        student,
        teacher,
        make_objective(config["objective"]),
        make_optim(config["optim"]),
        data.shape,
        data.classes,
        config["T"],
        config={"config": dict(config)},
    )
    record = Record()
    trainer = make_trainer(config, folder, record)
    announce(distiller, data, trainer, folder)
    return fit(config, folder, trainer, distiller, data, record)


def fit(
    config: Config, folder: Path, trainer: pl.Trainer, distiller: Distiller, data: Any, record: Record
) -> dict[str, Any]:
    """Trains, goes back to the best epoch, touches the test set once and writes what is left behind."""
    started = time.perf_counter()
    trainer.fit(distiller, datamodule=data)
    seconds = time.perf_counter() - started
    steps, epochs = trainer.global_step, trainer.current_epoch
    if trainer.interrupted:
        raise KeyboardInterrupt
    best = folder / "checkpoints" / "best.ckpt"
    kept = str(best) if best.is_file() else None
    tested = trainer.test(distiller, datamodule=data, ckpt_path=kept, weights_only=True, verbose=False)
    summary = summarise(config, distiller, data, record)
    summary["training"] |= {"epochs": epochs, "steps": steps, "seconds": round(seconds, 2)}
    batches = steps * getattr(data.memory, "batch_size", 0) * trainer.world_size if isinstance(data, Data) else 0
    summary["training"]["images_per_s"] = round(batches / seconds, 1)
    summary["metrics"]["test"] = {key.removeprefix("test/"): value for key, value in (tested or [{}])[0].items()}
    if trainer.is_global_zero:
        about = {key: json.dumps(summary["student"][key]) for key in ("name", "mean", "std")}
        save(distiller.student.net, folder / run.STUDENT, metadata=about)
        run.write_summary(folder, summary)
        conclude(summary, folder)
    trainer.strategy.barrier("summary written")
    return summary


def summarise(config: Config, distiller: Distiller, data: Any, record: Record) -> dict[str, Any]:
    """All of the summary that is known without timing and test; the schema is in docs/run-folder.md."""
    teacher = distiller.teacher
    sides = {"student": distiller.student, "teacher": teacher.network if teacher else None}
    described: dict[str, Any] = {}
    for side, network in sides.items():
        described[side] = network and {
            "name": config[side].get("name") or config[side]["_target_"].rpartition(".")[2],
            "config": {key: value for key, value in config[side].items() if key not in defaults_of(Origin)},
            "mean": network.mean.flatten().tolist(),
            "std": network.std.flatten().tolist(),
            **run.size_of(network, list(data.shape)),
        }
    if teacher is not None:
        described["teacher"] |= {"sha256": teacher.fingerprint(), "checkpoint": config["teacher"].get("checkpoint")}
    about = data.memory.describe() if isinstance(data, Data) else {"classes": data.classes, "shape": list(data.shape)}
    return {
        "task": config["task"],
        "versions": run.versions(),
        "seed": config["seed"],
        "data": {"config": config["data"], **about},
        **described,
        "objective": {"T": config["T"], "alpha": config["alpha"], "terms": distiller.objective.describe()},
        "training": {},
        "metrics": {"monitor": "val/acc", "best": record.best(), "last": record.last()},
    }


def make_data(config: Config) -> Any:
    """The data module: a source's arrays in memory, or the user's own LightningDataModule."""
    node = config["data"]
    around = defaults_of(Memory)
    source = build({key: value for key, value in node.items() if key not in around}, "data")
    if isinstance(source, pl.LightningDataModule):
        if not hasattr(source, "classes") or not hasattr(source, "shape"):
            raise InputError(f"data: {type(source).__name__} must say `classes` and `shape` ([C, H, W])")
        return source
    options = {key: node[key] for key in around if key in node}
    return Data(Memory(source, **options), config["seed"])


def make_network(node: Config, at: str, data: Any) -> Normalized:
    """A network for the data, with its normalisation in front."""
    mean = getattr(data, "mean", None) or [0.0] * data.shape[0]
    std = getattr(data, "std", None) or [1.0] * data.shape[0]
    return run.network_of(node, at, data.classes, list(data.shape), mean, std)


def make_objective(nodes: Config) -> Objective:
    """The terms, each a loss with its weight and layers."""
    around = defaults_of(Term)
    terms = {}
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise InputError(f"objective.{name} must be a term with a _target_, got {node!r}")
        loss = build({key: value for key, value in node.items() if key not in around}, f"objective.{name}")
        try:
            terms[name] = Term(loss, **{key: node[key] for key in around if key in node})
        except InputError as error:
            raise InputError(f"objective.{name}: {error}") from error
    return Objective(terms)


def make_optim(node: Config) -> Optim:
    """The optimiser's maker and its schedule."""
    around = defaults_of(Optim)
    make = build({key: value for key, value in node.items() if key not in around}, "optim", partial=True)
    return Optim(make, **{key: node[key] for key in around if key in node})


def make_trainer(config: Config, folder: Path, record: Record) -> pl.Trainer:
    """Lightning's trainer with the configured callbacks and loggers, which write into the run folder."""
    places = {"save_dir": str(folder), "dirpath": str(folder / "checkpoints"), "hyperparameters": flat(config)}
    callbacks = [build(node, f"callbacks.{key}", **places) for key, node in config["callbacks"].items() if node]
    loggers = [build(node, f"logger.{key}", **places) for key, node in config["logger"].items() if node]
    if not config["trainer"].get("enable_progress_bar", True):
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer = build(config["trainer"], "trainer", partial=True)
    try:
        return trainer(callbacks=[record, *callbacks], logger=loggers or False, default_root_dir=str(folder))
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise InputError(f"trainer: {str(error).splitlines()[0]}") from error


def make_teacher(config: Config, data: Any) -> Frozen | None:
    """The frozen teacher, from its checkpoint; without one it is trained first, once, and kept."""
    node = dict(config["teacher"] or {})
    if not node.get("_target_"):
        return None
    if not node.get("checkpoint"):
        node["checkpoint"] = str(trained_teacher(config, node))
    return Frozen(make_network(node, "teacher", data))


def trained_teacher(config: Config, node: Config) -> Path:
    """The folder of the run that trained this teacher; it is trained now if there is none yet."""
    own = {key: value for key, value in node.items() if key not in defaults_of(Origin) or key in ("mean", "std")}
    epochs = node.get("epochs") or config["epochs"]
    recipe = dict(config) | {
        "task": "teacher",
        "student": own,
        "teacher": None,
        "objective": {"ce": {"_target_": "kd.losses.hard.CE", "weight": 1.0}},
        "seed": node.get("seed") or 0,
        "trainer": {**config["trainer"], "max_epochs": epochs},
    }
    machine = ("accelerator", "devices", "strategy", "enable_progress_bar", "log_every_n_steps", "num_nodes")
    course = {key: value for key, value in recipe["trainer"].items() if key not in machine}
    parts = {key: recipe[key] for key in ("data", "student", "optim", "seed")} | {"trainer": course}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = Path(config["teachers"]) / f"{own['_target_'].rpartition('.')[2]}-{key}"
    if (folder / run.SUMMARY).is_file():
        log.info("teacher: reused from %s", folder)
        return folder
    log.info("teacher: it has no checkpoint, so it is trained first, for %d epochs, once; kept in %s", epochs, folder)
    train(recipe, folder)
    return folder


def flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """Nested keys as ``objective.kd.T``, with plain values: what the HPARAMS tab shows."""
    shown: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            shown |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            shown[f"{prefix}{key}"] = value
    return shown
