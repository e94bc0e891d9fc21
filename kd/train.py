"""The program: configuration in, run folder out. Plain containers only; Hydra stops at ``kd.cli``."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from kd import assemble, predictor, run
from kd.announce import announce, conclude
from kd.assemble import Config
from kd.data.module import Data
from kd.distiller import Distiller
from kd.errors import InputError
from kd.models.normalized import bare
from kd.models.weights import Origin, load_into, save
from kd.monitor import Record
from kd.registry import defaults_of

log = logging.getLogger(__name__)


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
    for key, value in (
        ("epochs", config["epochs"]),
        ("trainer.max_epochs", config["trainer"].get("max_epochs")),
    ):
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
    data = assemble.data(config)
    teacher = assemble.teacher(config, data)
    record = Record()
    trainer = assemble.trainer(config, folder, record)
    if teacher is not None:
        assemble.distiller(config, data, teacher)  # whatever cannot work is said before a teacher is trained
        config = {**config, "teacher": {**config["teacher"], "checkpoint": weights_of(config, data)}}
        if config["teacher"]["checkpoint"]:
            load_into(bare(teacher.network), config["teacher"]["checkpoint"])
    distiller = assemble.distiller(config, data, teacher)
    folder.mkdir(parents=True, exist_ok=True)
    run.write(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    announce(config, distiller, data, trainer, folder)
    try:
        return fit(config, folder, trainer, distiller, data, record)
    finally:
        for logger in trainer.loggers:
            close = getattr(getattr(logger, "experiment", None), "finish", None)
            if close is not None:
                close()  # else the next job of a sweep would go on writing into this one's W&B run


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
    summary = summarise(config, distiller, data, record)
    best = folder / "checkpoints" / "best.ckpt"
    kept = str(best) if best.is_file() else None
    tested = trainer.test(distiller, datamodule=data, ckpt_path=kept, weights_only=True, verbose=False)
    summary["training"] |= {"epochs": epochs, "steps": steps, "seconds": round(seconds, 2)}
    images = steps * trainer.accumulate_grad_batches * getattr(data, "batch_size", 0) * trainer.world_size
    summary["training"]["images_per_s"] = round(images / seconds, 1)
    summary["metrics"]["test"] = {key.removeprefix("test/"): value for key, value in (tested or [{}])[0].items()}
    if trainer.is_global_zero:
        about = {key: json.dumps(summary["student"][key]) for key in ("name", "mean", "std")}
        save(bare(distiller.student), folder / run.STUDENT, metadata=about)
        if (term := distiller.objective.predictor) is not None:
            predictor.keep(term, folder)
        run.write_summary(folder, summary)
        conclude(summary, folder)
    trainer.strategy.barrier("summary written")
    return summary


def summarise(config: Config, distiller: Distiller, data: Any, record: Record) -> dict[str, Any]:
    """All of the summary that is known without timing and test; the schema is in docs/run-folder.md."""
    teacher = distiller.teacher
    sides: dict[str, Any] = {"student": distiller.student, "teacher": teacher.network if teacher else None}
    described: dict[str, Any] = {}
    for side, network in sides.items():
        described[side] = network and {
            "name": run.name_of(config[side]),
            "config": {key: value for key, value in config[side].items() if key not in defaults_of(Origin)},
            "mean": [round(m, 6) for m in network.mean.flatten().tolist()],
            "std": [round(s, 6) for s in network.std.flatten().tolist()],
            **run.size_of(network, list(data.shape)),
        }
    if about := predictor.describe(distiller.objective, config["objective"]):
        described["student"] |= {"predictor": about}
    if teacher is not None:
        described["teacher"] |= {
            "sha256": teacher.fingerprint(),
            "checkpoint": config["teacher"]["checkpoint"],
        }
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


def weights_of(config: Config, data: Any) -> str | None:
    """The file or run folder of the teacher's weights; None if its library has filled it with weights already."""
    node = config["teacher"]
    if node.get("checkpoint") or node.get("weights") or node.get("pretrained"):
        return node.get("checkpoint")
    return str(trained_teacher(config, data))


def trained_teacher(config: Config, data: Any) -> Path:
    """The folder of the run that trained this teacher; it is trained now if there is none yet.

    A teacher is known by its network, the data's content and augmentation, the optimiser, the course and the seed.
    """
    node = config["teacher"]
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
    content = data.memory.describe()["sha256"] if isinstance(data, Data) else ""
    images = {key: value for key, value in config["data"].items() if key not in ("root", "download")}
    parts = {key: recipe[key] for key in ("student", "optim", "seed")}
    parts |= {"trainer": course, "data": images, "content": content}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = Path(config["teachers"]) / f"{run.name_of(own)}-{key}"
    if (folder / run.SUMMARY).is_file():
        log.info("teacher: reused from %s", folder)
        return folder
    log.info("teacher: no checkpoint, so it is trained first, %d epochs, once; kept in %s", epochs, folder)
    train(recipe, folder)
    return folder
