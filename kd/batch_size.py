"""The largest batch that fits, found by Lightning's own callback before training."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BatchSizeFinder

from kd.errors import InputError

log = logging.getLogger(__name__)


class BatchSize(BatchSizeFinder):
    """Doubles ``data.batch_size`` until memory is short or the training set is one batch, and trains with the last.

    Args:
        start: the first size tried.
        most: no larger one is tried. A CPU does not say when its memory is full: set this to what it can hold.
        steps: optimiser steps of each trial.

    Raises:
        InputError: a run that goes on, whose batches must stay as they were.
    """

    def __init__(self, start: int = 64, most: int = 4096, steps: int = 3) -> None:
        super().__init__("power", steps, start, batch_arg_name="batch_size", max_val=most)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None:
            raise InputError("a run that looks for its batch size cannot go on; start anew with data.batch_size=N")
        super().on_fit_start(trainer, pl_module)
        trainer.strategy.setup_optimizers(trainer)  # their schedule is as long as there are steps
        found = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        log.info("batch size: %d, the largest that fits; data.batch_size=%d says so without looking", found, found)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Evaluation has a batch size of its own, which is not looked for."""
