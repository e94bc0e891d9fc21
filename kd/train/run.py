"""One run under way: what its steps, its end and its summary work with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl

from kd.callbacks.history import History
from kd.callbacks.teacher_gate import TeacherGate
from kd.data.datamodule import ImageData
from kd.distill.distiller import Distiller
from kd.train.assemble import Config


@dataclass
class Run:
    """A run's configuration with the objects made from it.

    Attributes:
        config: resolved, as plain containers.
        folder: the run folder.
        objective: the name of the chosen objective, None where none has one.
        checkpoint: from which the run is resumed.
    """

    config: Config
    folder: Path
    data: ImageData
    trainer: pl.Trainer
    distiller: Distiller
    history: History
    gate: TeacherGate
    objective: str | None = None
    checkpoint: Path | None = None
