"""The scores of every validation, the training time and the number of images."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from kd.data.adapt import images_in
from kd.files import write_text


class History(Callback):
    """Records the scores of every validation, the training time and the number of images, also in checkpoints.

    Attributes:
        images: number of training images over all processes and epochs.

    Args:
        file: a CSV file that is rewritten after each validation; None for none.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.epochs: list[dict[str, float]] = []
        self.images = 0
        self._before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """How long training has taken, including the time before the run was resumed."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
        if self.epochs:
            self._write(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before, self._since = self.seconds, None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += images_in(batch) * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics.items()
            scores = {k: float(v) for k, v in metrics if k.startswith(("val/", "teacher/")) and k != "teacher/entropy"}
            self.epochs.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **scores})
            self._write(trainer)

    def last(self) -> dict[str, float]:
        """The scores of the last validation; empty if there was none."""
        return self.epochs[-1] if self.epochs else {}

    def at(self, step: int) -> dict[str, float]:
        """The scores of the weights after ``step`` optimiser steps; empty if they were not validated."""
        return next((scores for scores in self.epochs if scores["step"] == step), {})

    def _write(self, trainer: pl.Trainer) -> None:
        """Rewrites all scores as CSV, so that a resumed run has none twice."""
        if self.file is None or not trainer.is_global_zero:
            return
        columns = list(dict.fromkeys(key for scores in self.epochs for key in scores))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.epochs)
        write_text(self.file, text.getvalue())

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints, which keeps the former name of the class."""
        return "Record"

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self._before = list(state_dict["epochs"]), float(state_dict["seconds"])
        self.images = int(state_dict.get("images", 0))
