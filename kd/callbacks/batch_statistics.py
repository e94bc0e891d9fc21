"""Running statistics of batch norms that keep up in a short run, and a warning where validation stays at chance."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

log = logging.getLogger(__name__)

INITIAL = 0.01  # the largest weight of a norm's initial statistics in those of the first validation


class BatchStatistics(Callback):
    """Raises the momentum of batch norms in the first steps of a run, to :func:`least_momentum`.

    A norm with momentum m averages the statistics of the last 1 / m batches. Where a run is not much longer than that
    (m is 0.01 in many small networks, and 1 / n where it is None), validation sees the statistics of weights of long
    ago, or initial ones. With this they are of the last tenth of the run at most. Only norms whose initial statistics
    would have a weight (1 - m)^batches above 0.01 in the first validation are touched. Training itself does not see
    running statistics, so the weights are those of a run without it.
    """

    def __init__(self) -> None:
        self.slow: list[tuple[_NormBase, float | None]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = first_validation(trainer)
        norms = [module for module in pl_module.modules() if isinstance(module, _NormBase) and module.training]
        tracked = [norm for norm in norms if norm.track_running_stats and norm.momentum != 0]
        self.slow = [(norm, norm.momentum) for norm in tracked if (1 - (norm.momentum or 0)) ** batches > INITIAL]
        if self.slow and trainer.is_global_zero:
            least = min(momentum or 0 for _, momentum in self.slow)
            log.info(
                "batch norms: %d with momentum %s fill their running statistics faster, as the first validation comes "
                "after %s batches; callbacks.batch_statistics=null switches it off",
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
    """9 / (10 + step), rounded up to a power of 1/2, as compiled code is made anew for each value; at least 1/64."""
    return 2.0 ** -min(int(math.log2((10 + step) / 9)), 6)


def first_validation(trainer: pl.Trainer) -> float:
    """After how many batches of a process the first validation comes, or the run's end if that is earlier."""
    total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    interval: Any = trainer.val_check_batch  # None without validation
    return total if interval is None else min(total, interval * (trainer.check_val_every_n_epoch or 1))


class AtChance(Callback):
    """Warns once where the student learns in training and answers in two validations, or the last, like a guess.

    Args:
        margin: how far above a guess, in shares of what a guess misses, the training accuracy must lie.
    """

    def __init__(self, margin: float = 0.25) -> None:
        self.margin, self.times, self.said = margin, 0, ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trained, accuracy = (trainer.callback_metrics.get(key) for key in ("train/acc", "val/acc"))
        counts = getattr(pl_module, "confusion", None)
        if trainer.sanity_checking or trained is None or accuracy is None or not isinstance(counts, Tensor):
            return
        images = int(counts.sum())
        guess = float(counts.sum(1).max()) / max(images, 1)  # of the most frequent class
        error = math.sqrt(guess * (1 - guess) / max(images, 1))
        guessed = float(accuracy) <= guess + 2 * error and float(trained) >= guess + self.margin * (1 - guess)
        self.times = self.times + 1 if guessed else 0
        numbers = [f"{100 * float(share):.1f} %" for share in (accuracy, guess, trained)]
        self.said = "validation accuracy {} is no better than a guess ({}), though training accuracy is {}".format(
            *numbers
        )
        if self.times == 2:
            self._warn(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.times == 1:
            self._warn(trainer, pl_module)

    def _warn(self, trainer: pl.Trainer, module: nn.Module) -> None:
        norms = any(isinstance(each, _NormBase) and each.track_running_stats for each in module.modules())
        first = "do the batch norms' running statistics keep up (callbacks.batch_statistics), and " if norms else ""
        if trainer.is_global_zero:
            log.warning("%s: %sdo training and validation images and their labels go together?", self.said, first)
