"""The largest batch size that fits, searched by Lightning's own callback before training."""

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
    """Doubles ``data.batch_size`` until memory runs out or the training set is one batch; trains with the largest.

    Args:
        start: the first size tried.
        most: the largest size tried. On a CPU, set it to what fits, as a CPU does not report that memory is full.
        steps: optimiser steps per trial.

    The result becomes ``data.batch_size`` in the run's configuration, so that a resumed run uses it.
    """

    def __init__(self, start: int = 64, most: int = 4096, steps: int = 3) -> None:
        super().__init__("power", steps, start, batch_arg_name="batch_size", max_val=most)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None:
            size = data_of(trainer).batch_size
            log.info("batch size: %d, as determined at the start of the run", size)
            return
        super().on_fit_start(trainer, pl_module)
        trainer.strategy.setup_optimizers(trainer)  # the length of their schedule depends on the batch size
        size = int(data_of(trainer).batch_size or 0)
        log.info("batch size: %d, the largest that fits; set data.batch_size=%d to skip the search", size, size)
        _configure(trainer, pl_module, size)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Does nothing: evaluation has its own batch size, which is not searched."""


def _configure(trainer: pl.Trainer, module: Any, size: int) -> None:
    """Records the size in the configuration of the run folder and of its checkpoints."""
    config = module.hparams["config"]
    if "batch_size" not in config["data"]:
        log.warning("batch size: data has no option batch_size, so the result cannot be recorded in the configuration")
        return
    config = {**config, "data": {**config["data"], "batch_size": size}}
    module.hparams["config"] = config
    if isinstance(files := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
        files.config = config
    path = Path(trainer.default_root_dir) / CONFIG
    if trainer.is_global_zero and path.is_file():
        recorded = yaml.safe_load(path.read_text())
        recorded["data"]["batch_size"] = size
        write_text(path, yaml.safe_dump(recorded, sort_keys=False))
