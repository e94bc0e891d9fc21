"""The program: configuration in, run folder out. Plain containers only; Hydra stops at ``kd.cli``."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from torch import Tensor

from kd import assemble, place, predictor, run
from kd.announce import announce, conclude
from kd.assemble import Config, members
from kd.checkpoints import latest
from kd.distiller import Distiller
from kd.errors import InputError, Stopped
from kd.gate import Gate
from kd.living import lives
from kd.models.normalized import Pixels, bare
from kd.models.weights import Origin, fingerprint, save, save_tensors
from kd.monitor import Record
from kd.objective import Objective
from kd.ranges import check, check_batches, check_monitors
from kd.registry import defaults_of
from kd.summary import history, summarise

log = logging.getLogger(__name__)

_AGAIN = "; the same command goes on with it"


def train(config: Config, folder: Path, go_on: bool = False, **about: Any) -> dict[str, Any]:
    """One run: teacher (trained first if it has no checkpoint), student, fit, test, summary.

    Args:
        config: the composed configuration as plain containers.
        folder: the run folder, made if absent.
        go_on: whether to go on from what a stopped run of this configuration left in the folder.
        about: what else the summary is to say: the ``objective``'s name, the ``cell`` of a comparison.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        InputError: anything in the configuration that cannot work, or a folder that holds a run already.
        TrainingFailed: numbers that are not finite, a full disk.
        Stopped: a signal; the state is saved.
    """
    with run.held(folder, new=not go_on):
        return _train(config, folder, about)


def _train(config: Config, folder: Path, about: Config) -> dict[str, Any]:
    check(config)
    found = latest(folder)
    data = assemble.data(config)
    check_monitors(config, data.classes)
    record, gate = Record(), Gate(assemble.min_accuracies(config["teacher"]))
    trainer = assemble.trainer(config, folder, [gate, record], found.content["global_step"] if found else 0)
    check_batches(config, data, trainer.world_size)
    teacher = assemble.teacher(config, data, weights=False)
    if teacher is not None:
        dry = assemble.distiller(config, data, teacher)  # whatever cannot work is said before a teacher is trained
        config = {**config, "teacher": with_weights(config, data)}
        teacher = assemble.teacher(config, data, cache=cacheable(dry.objective))
    distiller = assemble.distiller(config, data, teacher)
    if found is not None:
        place.check(found, data, distiller.teacher_sha256)
    if trainer.is_global_zero:
        run.write(folder / run.CONFIG, yaml.safe_dump({**config, "about": about}, sort_keys=False))
    announce(config, distiller, data, trainer, folder)
    try:
        return fit(config, folder, trainer, distiller, data, record, gate, found and found.path, about)
    finally:
        for logger in trainer.loggers:
            close = getattr(getattr(logger, "experiment", None), "finish", None)
            if close is not None:
                close()  # else the next job of a sweep would go on writing into this one's W&B run


def fit(
    config: Config,
    folder: Path,
    trainer: pl.Trainer,
    distiller: Distiller,
    data: Any,
    record: Record,
    gate: Gate,
    checkpoint: Path | None,
    about: Config,
) -> dict[str, Any]:
    """Trains, goes back to the best epoch, touches the test set once and writes what is left behind."""
    trainer.fit(distiller, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    seconds, images = record.seconds, record.images
    steps, epochs = trainer.global_step, trainer.current_epoch
    if not steps:
        raise InputError("no step was trained: the training data gives no whole batch; see data.batch_size")
    summary = summarise(config, distiller, data, record, gate.accuracy)
    summary["objective"] |= {"name": about.get("objective")}
    summary |= {"cell": about.get("cell")}
    best = folder / run.CHECKPOINTS / "best.ckpt"
    kept = str(best) if best.is_file() else None
    scores = history(record)  # now, as the best checkpoint also brings back the record up to its epoch
    tested = trainer.test(distiller, datamodule=data, ckpt_path=kept, weights_only=True, verbose=False)
    summary["metrics"]["best"] = record.last()
    summary["training"] |= {"epochs": epochs, "steps": steps, "seconds": round(seconds, 2)}
    summary["training"]["images_per_s"] = round(images / seconds, 1)
    scores_of_test = (tested or [{}])[0].items()  # without those that no label was there for
    summary["metrics"]["test"] = {key.removeprefix("test/"): v for key, v in scores_of_test if not math.isnan(v)}
    predictions = distiller.predictions.compute()
    if trainer.is_global_zero:
        leave_behind(folder, distiller, summary, scores, predictions)
        if not summary["cell"]:
            conclude(summary, folder)
    trainer.strategy.barrier("summary written")
    return summary


def leave_behind(
    folder: Path, distiller: Distiller, summary: dict[str, Any], scores: str, predictions: dict[str, Tensor]
) -> None:
    """Writes the student, its answers on the test set, the history and, last of all, the summary."""
    summary["student"]["sha256"] = fingerprint(bare(distiller.student))
    about = {key: json.dumps(summary["student"][key]) for key in ("name", *Pixels._fields)}
    save(bare(distiller.student), folder / run.STUDENT, metadata=about)
    if (term := distiller.objective.predictor) is not None:
        predictor.keep(term, folder)
    if predictions:
        save_tensors(predictions, folder / run.PREDICTIONS)
    run.write(folder / run.HISTORY, scores)
    run.write_summary(folder, summary)


def cacheable(objective: Objective) -> bool:
    """Whether a table of logits can answer for the teacher; says if it cannot because layers are looked at."""
    if layers := objective.layers("teacher"):
        log.info("cache: off, the objective looks at the teacher's layers %s", ", ".join(layers))
    return objective.uses_teacher and not layers


def with_weights(config: Config, data: Any) -> Config:
    """The teacher's node with the file or run folder of the weights of each of its networks."""
    node = config["teacher"]
    if lives(node):
        return node
    found = {name: {**own, "checkpoint": weights_of(config, own, data)} for name, own in members(node).items()}
    return found.get("", {**node, "members": found})


def weights_of(config: Config, node: Config, data: Any) -> str | None:
    """The file or run folder of a teacher's weights; None if its library has filled it with weights already."""
    if node.get("checkpoint") or node.get("weights") or node.get("pretrained"):
        return node.get("checkpoint")
    return str(trained_teacher({**config, "teacher": node}, data))


def trained_teacher(config: Config, data: Any) -> Path:
    """The folder of the run that trained this teacher; it is trained now if there is none yet.

    A teacher is known by its network, the data's content and augmentation, the optimiser, the course and the seed.
    """
    if config["teacher"].get("data"):
        config = {**config, "data": {**config["data"], **config["teacher"]["data"]}}
        data = assemble.data(config)
    recipe = _recipe_of(config)
    folder = _folder_of(recipe, place.sha256_of(data) or "")
    if (folder / run.SUMMARY).is_file():
        log.info("teacher: reused from %s", folder)
        return folder
    with run.held(folder, wait=True):
        if (folder / run.SUMMARY).is_file():  # by the process that was waited for
            return folder
        how = "its training was stopped and goes on" if latest(folder) else "no checkpoint, so it is trained first"
        log.info("teacher: %s, %d epochs, once; kept in %s", how, recipe["trainer"]["max_epochs"], folder)
        try:
            _train(recipe, folder, {})
        except Stopped as stop:
            raise Stopped(stop.signum, f"the teacher's training was {stop}".partition(";")[0] + _AGAIN) from stop
    return folder


def _recipe_of(config: Config) -> dict[str, Any]:
    """The configuration of the run that trains the teacher of ``config``."""
    node = config["teacher"]
    own = {key: value for key, value in node.items() if key not in defaults_of(Origin) or key in Pixels._fields}
    return dict(config) | {
        "task": "teacher",
        "student": own,
        "teacher": None,
        "objective": {"ce": {"_target_": "kd.losses.hard.CE", "weight": 1.0}},
        "optim": node.get("optim") or config["optim"],
        "callbacks": {key: value for key, value in config["callbacks"].items() if key != "ema"},
        "seed": node.get("seed") or 0,
        "trainer": {**config["trainer"], "max_epochs": node.get("epochs") or config["epochs"]},
    }


def _folder_of(recipe: Config, content: str) -> Path:
    """Where the run of a teacher's recipe lies; ``content`` is the data's sha256."""
    machine = ("accelerator", "devices", "strategy", "enable_progress_bar", "log_every_n_steps", "num_nodes")
    course = {key: value for key, value in recipe["trainer"].items() if key not in machine}
    images = {key: value for key, value in recipe["data"].items() if key not in ("root", "download")}
    parts = {key: recipe[key] for key in ("student", "optim", "seed")}
    parts |= {"trainer": course, "data": images, "content": content}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Path(recipe["teachers"]) / f"{run.name_of(recipe['student'])}-{key}"
