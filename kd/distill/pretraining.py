"""The pre-training stage that some objectives begin with: its length, and the optimisers' reset at its end."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import pytorch_lightning as pl

from kd.distill.objective import Objective
from kd.optim import Optim

log = logging.getLogger(__name__)

NEAR = 0.05  # of an epoch: tolerance for rounded shares of the run, such as 0.1111 for 30 of 270 epochs


class Stage(NamedTuple):
    """A pre-training stage: its whole epochs, 0 if there is none, and its optimiser steps."""

    epochs: int = 0
    steps: int = 0


def stage_of(objective: Objective, optim: Optim, trainer: pl.Trainer) -> Stage:
    """The stage of a run: the objective's, or the share ``optim.init`` of the run if it is set."""
    total, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs or 0
    batches = trainer.num_training_batches
    each = total if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
    if optim.init is None:
        first = objective.init_epochs()
        return Stage(first, min(first * each, total))
    stage_epochs = optim.init * total / max(each, 1)
    stage = Stage(math.ceil(stage_epochs) if epochs else 0, round(optim.init * total))
    if abs(stage_epochs - round(stage_epochs)) <= NEAR:
        stage = Stage(round(stage_epochs), round(stage_epochs) * each)
    if (first := objective.init_epochs()) and stage.epochs != first:
        log.warning(
            "optim.init=%g ends pre-training after %d epochs, but the objective's terms change after %d: "
            "init_epochs=N sets both",
            *(optim.init, stage.epochs, first),
        )
    return stage


def begin_anew(trainer: pl.Trainer) -> None:
    """Resets the optimisers' state at the end of the stage: momentum, moments, step counts."""
    for optimizer in trainer.optimizers:
        optimizer.state.clear()
