"""The state of one run, shared by training, testing and the summary."""

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
    """A run's configuration with the objects built from it.

    Attributes:
        config: the resolved configuration, as plain containers.
        folder: the run folder.
        objective: the name of the chosen objective, None if it has no name.
        checkpoint: the checkpoint from which the run resumes, None for a new run.
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
