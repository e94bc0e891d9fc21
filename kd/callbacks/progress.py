"""The progress bar and the throughput."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar

from kd.data.adapt import images_in


class Throughput(Callback):
    """Logs ``time/images_per_s`` over all processes since it was last logged."""

    def __init__(self) -> None:
        self._images, self._since = 0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._images, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += images_in(batch) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            now = time.perf_counter()
            rate = self._images / max(now - self._since, 1e-9)
            pl_module.log("time/images_per_s", rate, prog_bar=True)
            self._images, self._since = 0, now


class ProgressBar(RichProgressBar):
    """Lightning's progress bar without the version number, with short names."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        short = {
            "train/loss": "loss",
            "train/acc": "acc",
            "val/acc": "val",
            "time/images_per_s": "img/s",
            "time/cache_hits": "hits",
        }
        metrics = super().get_metrics(trainer, pl_module)
        renamed = {short[name]: value for name, value in metrics.items() if name in short}
        return {name: f"{value:.0f}" if name == "img/s" else value for name, value in renamed.items()}
