"""The exponential moving average of the weights, which validation, checkpoints and the finished student have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from kd.distill.mean_teacher import check_decay


class EMA(WeightAveraging):
    """average = d * average + (1 - d) * weights after each step, with d = min(decay, (1 + n) / (10 + n)) at the n-th.

    So that in a short run the average is not of its first steps alone. Buffers are averaged too, counts are copied. A
    checkpoint holds the averaged weights as its ``state_dict`` and those under training beside them. Lightning takes
    up the latter whenever the callback is there; here only to go on training, so that a test has the average.

    Args:
        decay: d in the long run.

    Raises:
        InputError: a decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        check_decay(decay)
        super().__init__(avg_fn=averaging(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = self._device or trainer.strategy.root_device  # where the weights are about to go
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The rule of :class:`EMA` for one tensor, after ``count`` updates."""

    @torch.no_grad()
    def averaged(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        share = ((1 + torch.as_tensor(count, device=average.device)) / (10 + count)).clamp(max=decay)
        return average.lerp(current, (1 - share).to(average.dtype))

    return averaged
