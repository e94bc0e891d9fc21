"""Up-to-date running statistics of batch norms in short runs, and a warning if validation stays at chance."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from kd.callbacks._lightning import NormBase

log = logging.getLogger(__name__)

INITIAL = 0.01  # the largest weight of a norm's initial statistics in those of the first validation


class BatchStatistics(Callback):
    """Raises the momentum of batch norms in the first steps of a run, to :func:`least_momentum`.

    A norm with momentum m averages the statistics of the last 1 / m batches. If a run is not much longer than that
    (m is 0.01 in many small networks, and 1 / n if it is None), validation uses the statistics of outdated weights, or
    initial ones. With this callback they cover the last tenth of the run at most. It only changes norms whose initial
    statistics would have a weight (1 - m)^batches above 0.01 in the first validation. Training does not use running
    statistics, so the trained weights are the same with and without it.
    """

    def __init__(self) -> None:
        self.slow: list[tuple[NormBase, float | None]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = first_validation(trainer)
        norms = [module for module in pl_module.modules() if isinstance(module, NormBase) and module.training]
        tracked = [norm for norm in norms if norm.track_running_stats and norm.momentum != 0]
        self.slow = [(norm, norm.momentum) for norm in tracked if (1 - (norm.momentum or 0)) ** batches > INITIAL]
        if self.slow and trainer.is_global_zero:
            least = min(momentum or 0 for _, momentum in self.slow)
            log.info(
                "batch norms: %d with momentum %s update their running statistics faster, as the first validation "
                "comes after %s batches; set callbacks.batch_statistics=null to disable",
                len(self.slow),
                f"{least:g}" if least else "None",
                f"{batches:g}",
            )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        least = least_momentum(trainer.global_step)
        for norm, momentum in self.slow:
            norm.momentum = max(momentum or 0.0, least)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for norm, momentum in self.slow:
            norm.momentum = momentum
        self.slow = []


def least_momentum(step: int) -> float:
    """9 / (10 + step), rounded up to a power of 1/2, as each value is compiled separately; at least 1/64."""
    return 2.0 ** -min(int(math.log2((10 + step) / 9)), 6)


def first_validation(trainer: pl.Trainer) -> float:
    """The number of batches per process before the first validation or, if earlier, the end of the run."""
    total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    interval: Any = trainer.val_check_batch  # None without validation
    return total if interval is None else min(total, interval * (trainer.check_val_every_n_epoch or 1))


class AtChance(Callback):
    """Warns once if the student learns in training but is at chance in two validations in a row, or in the last.

    Args:
        margin: how far the training accuracy must lie above chance, as a fraction of the distance from chance to 1.
    """

    def __init__(self, margin: float = 0.25) -> None:
        self.margin, self.times, self.message = margin, 0, ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trained, accuracy = (trainer.callback_metrics.get(key) for key in ("train/acc", "val/acc"))
        counts = getattr(pl_module, "confusion", None)
        if trainer.sanity_checking or trained is None or accuracy is None or not isinstance(counts, Tensor):
            return
        images = int(counts.sum())
        chance = float(counts.sum(1).max()) / max(images, 1)  # the share of the most frequent class
        error = math.sqrt(chance * (1 - chance) / max(images, 1))
        at_chance = float(accuracy) <= chance + 2 * error and float(trained) >= chance + self.margin * (1 - chance)
        self.times = self.times + 1 if at_chance else 0
        numbers = [f"{100 * float(share):.1f} %" for share in (accuracy, chance, trained)]
        self.message = "validation accuracy {} is no better than chance ({}), although training accuracy is {}".format(
            *numbers
        )
        if self.times == 2:
            self._warn(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.times == 1:
            self._warn(trainer, pl_module)

    def _warn(self, trainer: pl.Trainer, module: nn.Module) -> None:
        norms = any(isinstance(each, NormBase) and each.track_running_stats for each in module.modules())
        first = "the running statistics of the batch norms (callbacks.batch_statistics), and " if norms else ""
        if trainer.is_global_zero:
            log.warning("%s: check %sthe labels of the training and validation images", self.message, first)
