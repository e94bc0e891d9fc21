"""Trains one run from its configuration, as plain containers; only ``kd.cli`` uses Hydra."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kd.callbacks.best import moved_to
from kd.callbacks.history import History
from kd.callbacks.position import check_same_run
from kd.callbacks.teacher_gate import TeacherGate
from kd.data.datamodule import ImageData
from kd.distill.identity import files_of, teacher_key
from kd.distill.objective import Objective
from kd.distill.spec import TeacherSpec
from kd.errors import InputError, Stopped
from kd.files import write_text
from kd.models.check import quietly
from kd.models.names import name_of
from kd.registry import with_current
from kd.run_folder import integrity
from kd.run_folder.checkpoints import Saved, latest
from kd.run_folder.classes import matched
from kd.run_folder.layout import CHECKPOINTS, CONFIG, HISTORY, SUMMARY, locked
from kd.train import assemble
from kd.train.assemble import Config
from kd.train.checks import check, check_batches, check_monitors
from kd.train.console import print_start
from kd.train.finish import finish
from kd.train.preflight import preflight
from kd.train.run import Run
from kd.train.teacher_recipe import has_weights, recipe_of, start_of

log = logging.getLogger(__name__)

_AGAIN = "; the same command resumes it"


def train(
    config: Config,
    folder: Path,
    resume: bool = False,
    data_changed: bool = False,
    objective: str | None = None,
) -> dict[str, Any]:
    """One run: the teacher, trained first if it has no weights, the student's training, test and summary.

    Args:
        config: the composed configuration as plain containers.
        folder: the run folder, created if absent.
        resume: whether to resume an interrupted run of this configuration in the folder.
        data_changed: whether a resumed run accepts data that differs from its checkpoint's.
        objective: the name of the chosen objective, for the summary.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        InputError: an invalid configuration, or a folder that already contains a run.
        TrainingFailed: non-finite values, a full disk.
        Stopped: a signal, after the state was saved.
    """
    with locked(folder, new=not resume):
        return _train(with_current(config), folder, objective, data_changed)


def _train(config: Config, folder: Path, objective: str | None, data_changed: bool = False) -> dict[str, Any]:
    check(config)
    saved = latest(folder)
    data = assemble.data(config)
    config = resolved(config, data)
    check_checkpoints(config, folder, saved)
    check_monitors(config, data.classes)
    history, gate = History(folder / HISTORY), TeacherGate(TeacherSpec.parse(config["teacher"]).min_accuracies())
    trainer = assemble.trainer(config, folder, [gate, history], saved.content["global_step"] if saved else 0)
    check_batches(config, data, trainer.world_size)
    teacher = assemble.teacher(config, data, weights=False)
    distiller = assemble.distiller(config, data, teacher)  # reports errors before a teacher is trained
    preflight(config, data, distiller, trainer)
    if teacher is not None:
        config = {**config, "teacher": with_weights(config, data)}
        teacher = assemble.teacher(config, data, cache=cacheable(distiller.objective))
        with quietly():
            distiller = assemble.distiller(config, data, teacher)
    if saved is not None:
        check_same_run(saved, data, distiller.teacher_sha256, data_changed)
    if trainer.is_global_zero:
        metadata = {"objective": objective, "cell": config.get("cell"), "files": files_of(config)}
        write_text(folder / CONFIG, yaml.safe_dump({**config, "about": metadata}, sort_keys=False))
    run = Run(config, folder, data, trainer, distiller, history, gate, objective, saved and saved.path)
    print_start(config, distiller, data, trainer, folder)
    try:
        return fit(run)
    finally:
        for logger in trainer.loggers:
            close = getattr(getattr(logger, "experiment", None), "finish", None)
            if close is not None:
                close()  # else the next job of a sweep would write into this job's W&B run


def check_checkpoints(config: Config, folder: Path, saved: Saved | None) -> None:
    """Checks that the checkpoints of an interrupted run are intact and belong to this configuration.

    Raises:
        InputError: a checkpoint of another run, or a corrupt best checkpoint.
    """
    if saved is None:
        return
    integrity.check(saved.path, saved.content, config, files_of(config))
    for best in best_of(saved, folder / CHECKPOINTS):
        try:
            content = integrity.read(best)
        except integrity.Damaged as error:
            raise InputError(f"{error}; restore a copy of it, or start a new run") from error
        integrity.check(best, content, config, files_of(config))


def best_of(saved: Saved, folder: Path) -> list[Path]:
    """The checkpoints of the best epoch in a folder, by the names that the callbacks' states contain."""
    states = (saved.content.get("callbacks") or {}).values()
    best = [(state["best_model_path"], state.get("dirpath")) for state in states if state.get("best_model_path")]
    paths = {folder / "best.ckpt", *(Path(moved_to(path, before, folder)) for path, before in best)}
    return sorted(path for path in paths if path.is_file())


def fit(run: Run) -> dict[str, Any]:
    """Trains, tests, writes the results and returns the summary."""
    if run.trainer.precision == "64-true":  # before callbacks copy the weights or a checkpoint is loaded
        run.distiller.double()
    run.trainer.fit(run.distiller, datamodule=run.data.lightning, ckpt_path=run.checkpoint, weights_only=True)
    if not run.trainer.global_step:
        raise InputError("no step was trained: the training data has no full batch; see data.batch_size")
    return finish(run)


def cacheable(objective: Objective) -> bool:
    """Whether cached logits can replace the teacher; logs it if they cannot because the objective taps its layers."""
    if layers := objective.layers("teacher"):
        log.info("cache: off, the objective uses the teacher's layers %s", ", ".join(layers))
    return objective.uses_teacher and not layers


def resolved(config: Config, data: ImageData) -> Config:
    """The configuration with the values that depend on the data: its scaled options, and a teacher's ``classes``."""
    config = {**config, "data": {**config["data"], **data.resolved}}
    spec = TeacherSpec.parse(config["teacher"])
    if spec.online or not spec.members:
        return config
    nodes = {member.name: matched(member.node, member.key, data) for member in spec.members}
    return {**config, "teacher": spec.with_members(nodes)}


def with_weights(config: Config, data: ImageData) -> Config:
    """The teacher's node with the path to the weights of each network; those without weights are trained now."""
    spec = TeacherSpec.parse(config["teacher"])
    if spec.online:
        return spec.node
    shared = {"trainer": spec.node["trainer"]} if spec.kind == "ensemble" and spec.node.get("trainer") else {}
    members = [replace(member, node={**shared, **member.node}) for member in spec.members]
    ready = {member.name: has_weights(member, data) for member in members}  # checks all before training any
    nodes: dict[str, Config] = {}
    for name, node in ((member.name, member.node) for member in members):
        weights = node.get("checkpoint") if ready[name] else str(trained_teacher({**config, "teacher": node}, data))
        nodes[name] = {**node, "checkpoint": weights}
    return spec.with_members(nodes)


def trained_teacher(config: Config, data: ImageData) -> Path:
    """The folder of the run that trained this teacher; it is trained now if there is none.

    The folder's name contains the key of :func:`kd.distill.identity.teacher_key`.
    """
    recipe = recipe_of(config)
    if recipe["data"] != config["data"]:
        data = assemble.data(recipe)
    name = f"{name_of(recipe['student'])}-{teacher_key(recipe, data, start_of(recipe, data))}"
    folder = Path(recipe["teachers"]) / name
    if (folder / SUMMARY).is_file():
        log.info("teacher: reused from %s", folder)
        return folder
    with locked(folder, wait=True):
        if (folder / SUMMARY).is_file():  # another process trained it meanwhile
            return folder
        how = "resuming its training" if latest(folder) else "no checkpoint, so it is trained first"
        log.info("teacher: %s, %d epochs, once; stored in %s", how, recipe["trainer"]["max_epochs"], folder)
        try:
            _train(recipe, folder, None)
        except InputError as error:  # the student of that run is the teacher of this one
            raise InputError(re.sub(r"\bstudent(?=[.:])", "teacher", str(error))) from error
        except Stopped as stop:
            raise Stopped(stop.signum, f"the teacher's training was {stop}".partition(";")[0] + _AGAIN) from stop
    return folder
