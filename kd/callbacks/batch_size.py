"""The largest batch that fits, found by Lightning's own callback before training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import BatchSizeFinder

from kd.callbacks.checkpoint import AtomicCheckpointIO
from kd.data.datamodule import data_of
from kd.files import write_text
from kd.run_folder.layout import CONFIG

log = logging.getLogger(__name__)


class BatchSize(BatchSizeFinder):
    """Doubles ``data.batch_size`` until memory is short or the training set is one batch, and trains with the last.

    Args:
        start: the first size tried.
        most: no larger one is tried. A CPU does not say when its memory is full: set this to what it can hold.
        steps: optimiser steps of each trial.

    The size found becomes the ``data.batch_size`` of the run's configuration, with which the run is resumed.
    """

    def __init__(self, start: int = 64, most: int = 4096, steps: int = 3) -> None:
        super().__init__("power", steps, start, batch_arg_name="batch_size", max_val=most)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None:
            size = data_of(trainer).batch_size
            log.info("batch size: %d, as the run found it when it began", size)
            return
        super().on_fit_start(trainer, pl_module)
        trainer.strategy.setup_optimizers(trainer)  # their schedule is as long as there are steps
        size = int(data_of(trainer).batch_size or 0)
        log.info("batch size: %d, the largest that fits; data.batch_size=%d says so without looking", size, size)
        _configure(trainer, pl_module, size)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Evaluation has a batch size of its own, which is not looked for."""


def _configure(trainer: pl.Trainer, module: Any, size: int) -> None:
    """Writes the size into the configuration: of the run folder, and of the checkpoints that are written and read."""
    config = module.hparams["config"]
    if "batch_size" not in config["data"]:
        log.warning("batch size: it is no option of data, so a run of another process would not know it")
        return
    config = {**config, "data": {**config["data"], "batch_size": size}}
    module.hparams["config"] = config
    if isinstance(files := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
        files.config = config
    path = Path(trainer.default_root_dir) / CONFIG
    if trainer.is_global_zero and path.is_file():
        known = yaml.safe_load(path.read_text())
        known["data"]["batch_size"] = size
        write_text(path, yaml.safe_dump(known, sort_keys=False))
