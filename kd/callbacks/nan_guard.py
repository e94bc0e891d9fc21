"""The guard against numbers that are not finite: they never become a checkpoint or a success."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from kd.distill.metrics import HINT
from kd.errors import InputError, TrainingFailed, unknown

log = logging.getLogger(__name__)

CHOICES = ("stop", "skip")


class NaNGuard(Callback):
    """Looks at the gradient's norm before each update, after processes have shared it, so that all of them agree.

    Logits that are not finite in validation are warned of; in the test they end the run, after the student is kept.

    Args:
        nan: ``stop`` ends the run before the update; ``skip`` leaves the update out.
        most: how many updates may be left out in all.

    Raises:
        InputError: an unknown choice, or a count below 1.
        TrainingFailed: a gradient that is not finite; the terms that are not finite are named.
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
            return  # float16's scale was too large: the scaler leaves this update out and lowers it
        step = trainer.global_step + 1
        what = _blamed(pl_module)
        spoiled = [name for name, buffer in pl_module.named_buffers() if not buffer.isfinite().all()]
        if self.nan == "skip" and self.skipped < self.most and not spoiled:
            self.skipped += 1
            log.warning("%s at step %d: update left out (%d of %d)", what, step, self.skipped, self.most)
            optimizer.zero_grad(set_to_none=True)
            return
        spent = f", after {self.skipped} updates left out" if self.skipped else ""
        spent += f", and so is {spoiled[0]}" if spoiled else ""
        raise TrainingFailed(
            f"{what} at step {step}{spent}; nothing after step {trainer.global_step} was kept. "
            "A lower optim.lr or a higher T often helps; nan=skip leaves such updates out"
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Warns once where scores are of logits that are not finite, as eval mode may give them alone."""
        scores = getattr(pl_module, "scores", {})
        count = scores["val"].not_finite()["student"] if "val" in scores else 0
        if count and not (trainer.sanity_checking or self.warned) and trainer.is_global_zero:
            self.warned = True
            log.warning(
                "the student's logits on %d validation images are not finite in eval mode, so that its scores mean "
                "nothing: %s",
                *(count, HINT),
            )

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints, also in those that were written before the class had this name."""
        return "Finite"

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict["skipped"])


def _finite(gradients: list[Tensor]) -> bool:
    norms = torch._foreach_norm(gradients)
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def _terms(module: Any) -> list[tuple[str, float]]:
    """The terms of the last step that are not finite."""
    return [(name, float(part)) for name, part in getattr(module, "parts", {}).items() if not part.isfinite()]


def _blamed(module: Any) -> str:
    """Which terms of the last step are not finite, or that the gradient alone is not."""
    if bad := _terms(module):
        return " and ".join(f"the loss term {name} is {value}" for name, value in bad)
    names = [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return f"the gradient of {names[0]} is not finite, though the loss is," if names else "the gradient is not finite"
