"""Terminal output of a run: a description at its start, a table of results at its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch import nn

from kd.data.datamodule import ImageData
from kd.data.memory import Memory
from kd.distill.distiller import Distiller
from kd.distill.objective import Term
from kd.distill.spec import TeacherSpec
from kd.distill.teacher import FrozenTeacher
from kd.distill.teacher_options import TeacherOptions
from kd.files import relative
from kd.models.cost import size_of
from kd.models.names import name_of
from kd.models.weights import prepare
from kd.optim import Optim
from kd.process.command import path_argument
from kd.registry import losses, models, optimisers, shadowed, sources
from kd.run_folder.text import number, percent
from kd.train.choice import BEST

log = logging.getLogger(__name__)
COARSE = 2.0  # standard error of val/acc, in points, from which on it is logged


def print_start(
    config: Mapping[str, Any], distiller: Distiller, data: ImageData, trainer: pl.Trainer, folder: Path
) -> None:
    """Logs the data split, both networks with their sizes, the objective with its weights, and where the curves are."""
    if not trainer.is_global_zero:
        return
    shape = list(data.shape)
    if data.parts:
        split = ", ".join(f"{count:,} {part}" for part, count in data.counts().items())
        if data.val == "test":
            split += "; the best epoch is chosen on the TEST set (data.val=test)"
        log.info("data: %s; %d classes, images %s", split, data.classes, "x".join(map(str, shape)))
        for line in _coarse(data.counts()["val"]) + data.account():
            log.info("data: %s", line)
    _network("student", name_of(config["student"]), distiller.student, shape)
    if distiller.teacher is not None:
        nodes = TeacherSpec.parse(config["teacher"]).nodes()
        for name, network in distiller.teacher.networks().items():
            note = ", frozen" if isinstance(distiller.teacher, FrozenTeacher) else ", changing with the student"
            _network(f"teacher {name}".strip(), name_of(nodes[name]), network, shape, note)
        if line := distiller.teacher.describe():
            log.info("teacher: %s", line)
    for line in _clashes(config, data):
        log.info("%s", line)
    for line in distiller.objective.describe():
        log.info("objective: %s", line)
    if distiller.optim is not None:
        log.info("optim: %s", distiller.optim.describe(distiller))
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        log.info("watch: tensorboard --logdir %s", path_argument(relative(folder)))


def _clashes(config: Mapping[str, Any], data: ImageData) -> list[str]:
    """Notes on keys that a custom function takes as its own parameters, so that they do not reach kd."""
    nodes: dict[str, Any] = {"student": (config["student"], prepare), "optim": (config["optim"], Optim)}
    nodes |= {f"objective.{name}": (node, Term) for name, node in config["objective"].items()}
    nodes |= {"data": (config["data"], Memory)} if data.memory is not None else {}
    spec = TeacherSpec.parse(config["teacher"])
    if not spec.online:
        nodes |= {member.key: (member.node, prepare, TeacherOptions) for member in spec.members}
    return [
        f"{at}: {key} is {node['_target_']}'s own parameter, not kd's"
        for at, (node, *wrappers) in nodes.items()
        if not any(registry.name_of(node["_target_"]) for registry in (models, losses, sources, optimisers))
        for key in shadowed(node, at, *wrappers)
    ]


def _coarse(count: int) -> list[str]:
    """A note on a validation set that is too small to rank epochs reliably, as a list of lines; else empty."""
    error = 100 * math.sqrt(0.8 * 0.2 / count)
    if error < COARSE:
        return []
    return [f"{count} validation images: val/acc has a standard error of {error:.1f} points at 80 % accuracy"]


def _network(who: str, name: str, network: nn.Module, shape: list[int], note: str = "") -> None:
    size = size_of(network, shape)
    counts = f"{size['parameters']:,} parameters, {size['macs'] / 1e6:,.1f} million MACs"
    resized = f", images resized to {network.size}" if network.size else ""
    log.info("%s: %s, %s%s%s", who, name, counts, resized, note)


def console_for(table: Table) -> Console:
    """A console at least as wide as the table, so that no number is cut on 80 columns."""
    wide = Console(markup=False, width=1000)
    needed = Measurement.get(wide, wide.options, table).maximum
    return Console(highlight=False, soft_wrap=True, markup=False, width=max(Console().width, needed))


def print_results(summary: dict[str, Any], folder: Path) -> None:
    """Prints the table of results: teacher, student, agreement, time."""
    metrics = summary["metrics"]
    best, last, test = metrics["best"], metrics["last"], metrics["test"] or {}
    title = f"{summary['task']}: {relative(folder)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    chosen = "val best" if metrics.get("chosen", BEST).startswith(BEST) else "val chosen"
    for column in ("params", chosen, "val last", "test", "nll", "ece"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = {"teacher": ("teacher/acc", "teacher_"), "student": ("val/acc", "")}
    for side, (val, prefix) in rows.items():
        if network := summary[side]:
            scores = [percent(best.get(val)), percent(last.get(val)), percent(test.get(f"{prefix}acc"))]
            losses = [number(test.get(f"{prefix}nll")), number(test.get(f"{prefix}ece"))]
            table.add_row(f"{side} {network['name']}", f"{network['parameters']:,}", *scores, *losses)
    training = summary["training"]
    console = console_for(table)
    console.print(table)
    if "agreement" in test:
        agreement = percent(test["agreement"])
        console.print(f"agreement with the teacher on test {agreement}, KL {number(test.get('kl'))} nats")
    speed = f"{training['steps']:,} steps in {training['seconds']:.1f} s, {training['images_per_s']:,.0f} images/s"
    what = f"scores {metrics.get('chosen', BEST)}"
    what = f"test {what}" if test else f"{what}, not tested: {metrics.get('untested')}"
    console.print(f"{training['epochs']} epochs, {speed}; {what}")
