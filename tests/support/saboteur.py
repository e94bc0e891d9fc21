"""Callbacks for tests of interrupted runs: one ends the process at a chosen moment, one writes down every step."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn


class Saboteur(Callback):
    """Sends this process a signal, once: at ``moment`` of ``epoch``, and of ``batch`` where it has batches."""

    def __init__(self, moment: str, epoch: int, batch: int = 0, signum: int = signal.SIGKILL, mark: str = "") -> None:
        self.moment, self.epoch, self.batch, self.signum, self.mark = moment, epoch, batch, signum, Path(mark)

    def _strike(self, moment: str, trainer: pl.Trainer, batch: int = 0) -> None:
        if (moment, trainer.current_epoch, batch) == (self.moment, self.epoch, self.batch) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.signum)
            time.sleep(0.01)  # a handler in Python runs between two instructions

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._strike("step", trainer, batch_idx)

    def on_validation_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._strike("validation", trainer, batch_idx)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._strike("between", trainer)

    def on_test_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._strike("test", trainer)


class Witness(Callback):
    """Appends a line for each training batch: epoch, batch, loss in hexadecimal, samples, pixels; a file a process."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        if trainer.global_rank:
            self.file = self.file.with_suffix(f".{trainer.global_rank}.txt")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        samples = ",".join(map(str, batch[2].tolist()))
        pixels = hashlib.sha256(batch[0].contiguous().numpy().tobytes()).hexdigest()[:16]
        loss = float(outputs["loss"]).hex()
        with self.file.open("a") as lines:
            lines.write(f"{trainer.current_epoch} {batch_idx} {loss} {samples} {pixels}\n")


class Poison(Callback):
    """Makes a gradient NaN before the update of ``step``, counted from 1, for ``times`` updates."""

    def __init__(self, step: int, times: int = 1, rank: int | None = None) -> None:
        self.step, self.times, self.rank = step, times, rank

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        mine = self.rank is None or trainer.global_rank == self.rank
        if mine and self.step <= trainer.global_step + 1 < self.step + self.times:
            next(module.parameters()).grad.fill_(torch.nan)


class Wide(nn.Module):
    """A student with dropout, and so large that its checkpoint takes a while to write."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.3))
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.3))
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.inner(self.body(images)))


def wider(classes: int) -> Wide:
    """Two and a half million parameters."""
    return Wide(classes, 1500)


class Filler(Callback):
    """Fills a disk after ``step``, so that nothing more can be written there."""

    def __init__(self, file: str, step: int) -> None:
        self.file, self.step = file, step

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            with open(self.file, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError:
                    pass
