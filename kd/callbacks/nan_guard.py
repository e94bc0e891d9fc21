"""The guard against non-finite values: they never reach a checkpoint or a result."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from kd.callbacks._lightning import norms_of
from kd.distill.metrics import HINT
from kd.errors import InputError, TrainingFailed, unknown

log = logging.getLogger(__name__)

CHOICES = ("stop", "skip")


class NaNGuard(Callback):
    """Checks the gradient's norm before each update, after it was reduced over the processes, so that all agree.

    Non-finite logits in validation lead to a warning; in the test they end the run, after the student was saved.

    Args:
        nan: ``stop`` ends the run before the update; ``skip`` skips the update.
        most: the largest number of skipped updates.

    Raises:
        InputError: an unknown choice, or a count below 1.
        TrainingFailed: a non-finite gradient; the non-finite terms are named.
    """

    def __init__(self, nan: str = "stop", most: int = 10) -> None:
        if nan not in CHOICES:
            raise unknown("nan", nan, CHOICES)
        if most < 1:
            raise InputError(f"most must be at least 1, got {most}")
        self.nan, self.most, self.skipped, self.warned = nan, most, 0, False

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients or _finite(gradients):
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() > 1 and not _terms(pl_module):
            return  # float16's scale is too large: the scaler skips this update and lowers it
        step = trainer.global_step + 1
        cause = _cause(pl_module)
        invalid = [name for name, buffer in pl_module.named_buffers() if not buffer.isfinite().all()]
        if self.nan == "skip" and self.skipped < self.most and not invalid:
            self.skipped += 1
            log.warning("%s at step %d: update skipped (%d of %d)", cause, step, self.skipped, self.most)
            optimizer.zero_grad(set_to_none=True)
            return
        details = f", after {self.skipped} skipped updates" if self.skipped else ""
        details += f", and so is {invalid[0]}" if invalid else ""
        raise TrainingFailed(
            f"{cause} at step {step}{details}; nothing after step {trainer.global_step} was saved. "
            "A lower optim.lr or a higher T often helps; nan=skip skips such updates"
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Warns once if logits are not finite, which may happen in eval mode alone."""
        scores = getattr(pl_module, "scores", {})
        count = scores["val"].not_finite()["student"] if "val" in scores else 0
        if count and not (trainer.sanity_checking or self.warned) and trainer.is_global_zero:
            self.warned = True
            log.warning(
                "the student's logits on %d validation images are not finite in eval mode, so its scores are "
                "meaningless: %s",
                *(count, HINT),
            )

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints, which keeps the former name of the class."""
        return "Finite"

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict["skipped"])


def _finite(gradients: list[Tensor]) -> bool:
    return bool(torch.stack([norm.float() for norm in norms_of(gradients)]).isfinite().all())


def _terms(module: Any) -> list[tuple[str, float]]:
    """The non-finite terms of the last step."""
    return [(name, float(part)) for name, part in getattr(module, "parts", {}).items() if not part.isfinite()]


def _cause(module: Any) -> str:
    """Names the non-finite terms of the last step, else the parameter with a non-finite gradient."""
    if terms := _terms(module):
        return " and ".join(f"the loss term {name} is {value}" for name, value in terms)
    names = [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return f"the gradient of {names[0]} is not finite, although the loss is," if names else "the gradient is not finite"
