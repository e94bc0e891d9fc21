"""What a run says on the terminal: at the start what it will do, at the end how it went."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table

from kd.data.module import Data
from kd.distiller import Distiller
from kd.run import size_of

log = logging.getLogger(__name__)


def announce(distiller: Distiller, data: Any, trainer: pl.Trainer, folder: Path) -> None:
    """Says the data split, both networks with their sizes, the objective with its numbers, and where to look."""
    if not trainer.is_global_zero:
        return
    shape = list(data.shape)
    if isinstance(data, Data):
        about = {part: len(labels) for part, (_, labels) in data.memory.parts.items()}
        split = ", ".join(f"{count:,} {part}" for part, count in about.items())
        if data.memory.val == "test":
            split += "; the best epoch is chosen on the TEST set (data.val=test)"
        log.info("data: %s; %d classes, images %s", split, data.classes, "x".join(map(str, shape)))
    networks = {"student": distiller.student, "teacher": distiller.teacher and distiller.teacher.network}
    for side, network in networks.items():
        if network is not None:
            size = size_of(network, shape)
            name = type(getattr(network, "net", network)).__name__
            counts = f"{size['parameters']:,} parameters, {size['macs'] / 1e6:,.1f} million MACs"
            log.info("%s: %s, %s%s", side, name, counts, ", frozen" if side == "teacher" else "")
    for line in distiller.objective.describe():
        log.info("objective: %s", line)
    log.info("watch: tensorboard --logdir %s", folder)


def conclude(summary: dict[str, Any], folder: Path) -> None:
    """Prints the closing table: teacher, student, agreement, time."""
    best, last, test = (summary["metrics"][part] for part in ("best", "last", "test"))
    table = Table(title=f"{summary['task']}: {folder}", title_justify="left")
    for column in ("", "parameters", "val acc (best)", "val acc (last)", "test acc", "test nll", "test ece"):
        table.add_column(column, justify="left" if not column else "right")
    if summary["teacher"]:
        table.add_row(
            f"teacher {summary['teacher']['name']}",
            f"{summary['teacher']['parameters']:,}",
            _percent(best.get("teacher/acc")),
            _percent(last.get("teacher/acc")),
            _percent(test.get("teacher_acc")),
            _number(test.get("teacher_nll")),
            "",
        )
    table.add_row(
        f"student {summary['student']['name']}",
        f"{summary['student']['parameters']:,}",
        _percent(best.get("val/acc")),
        _percent(last.get("val/acc")),
        _percent(test.get("acc")),
        _number(test.get("nll")),
        _number(test.get("ece")),
    )
    training = summary["training"]
    console = Console(soft_wrap=False)
    console.print(table)
    if "agreement" in test:
        console.print(
            f"agreement with the teacher on test {_percent(test['agreement'])}, KL {_number(test.get('kl'))} nats"
        )
    console.print(
        f"{training['epochs']} epochs, {training['steps']:,} steps in {training['seconds']:.1f} s, "
        f"{training['images_per_s']:,.0f} images/s; best epoch {best.get('epoch', '-')} (of the validation set)"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
