"""The exponential moving average of the weights, used for validation, checkpoints and the final student."""

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

    The smaller d at the start keeps the first steps from dominating a short run's average. Buffers are averaged as
    well, counts are copied. A checkpoint holds the averaged weights as ``state_dict`` and the weights in training
    beside them. Lightning restores the latter in every stage; this callback only in training, so that a test uses the
    average.

    Args:
        decay: d after many steps.

    Raises:
        InputError: a decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        check_decay(decay)
        super().__init__(avg_fn=averaging(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = self._device or trainer.strategy.root_device  # where the weights will be moved
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
