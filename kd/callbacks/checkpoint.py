"""Checkpoints: written atomically, when, and how a signal ends a run that can be resumed."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import nn

from kd.callbacks._lightning import log_train_step, validates_next
from kd.distill.identity import files_of
from kd.errors import InputError, Stopped, TrainingFailed, disk_fault
from kd.files import atomic, relative
from kd.process.command import command
from kd.run_folder import integrity
from kd.run_folder.checkpoints import LAST, PREVIOUS

PATIENCE = 10.0  # seconds that a validation may continue after a signal


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file, flushes it to disk and renames it; reads only tensors and plain containers.

    Args:
        config: the run's configuration; checkpoints of other runs are refused. None accepts any.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replaces ``path`` by the checkpoint, or leaves it unchanged.

        Raises:
            TrainingFailed: no space left, or another disk error.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary, temporary.open("wb") as file:
                torch.save(integrity.sealed(checkpoint), file)
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            fault = disk_fault(error)
            if fault is None:
                raise
            needed = sum(t.numel() * t.element_size() for t in tensors_of(checkpoint)) / 1e6
            reason = f"the checkpoint {path} of {needed:.1f} MB cannot be written: {os.strerror(fault.errno or 0)}"
            raise TrainingFailed(f"{reason}; the previous one is kept") from error

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content: dict[str, Any] = integrity.read(Path(path), map_location)
        if self.config is not None:
            integrity.check(Path(path), content, self.config, files_of(self.config))
        return content


def tensors_of(content: Any) -> list[torch.Tensor]:
    """All tensors in nested containers."""
    if isinstance(content, torch.Tensor):
        return [content]
    inner = content.values() if isinstance(content, Mapping) else content if isinstance(content, (list, tuple)) else ()
    return [tensor for part in inner for tensor in tensors_of(part)]


class Last(Checkpoint):
    """Saves ``last.ckpt``, from which the run can be resumed exactly, and the previous one as a fallback.

    It is written at the end of each epoch, after validation, every ``minutes``, and on SIGTERM or SIGINT, which stop
    the run; a second signal ends it immediately. It is never written between an epoch's last step and the end of its
    validation, as Lightning would omit that validation. Add it after the callback that saves the best epoch, so that it
    contains that callback's new state.

    Args:
        dirpath: the folder.
        minutes: the longest time between two checkpoints; None for epochs only.
        steps: the number of optimiser steps between two checkpoints; None for epochs only.

    Raises:
        InputError: numbers that are not positive.
        Stopped: after a signal, once the state is saved.
    """

    save_weights_only = False  # as in ModelCheckpoint: optimiser and position are saved as well

    def __init__(self, dirpath: str, minutes: float | None = 10.0, steps: int | None = None) -> None:
        for key, value in (("minutes", minutes), ("steps", steps)):
            if value is not None and not value > 0:
                raise InputError(f"{key} must be above 0, or null to disable; got {value}")
        self.folder, self.minutes, self.steps = Path(dirpath), minutes, steps
        self.signum: int | None = None
        self._signalled = 0.0
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "test":
            self._catch(self._end)
        if stage == "fit" and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob(".*.tmp"):
                partial.unlink(missing_ok=True)  # of a process that was killed while writing
        for other in trainer.checkpoint_callbacks:
            if isinstance(other, ModelCheckpoint) and other.dirpath and Path(other.dirpath) == self.folder.resolve():
                other.save_last = None  # it would write the same file at points that cannot be resumed from

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            check_disk_space(pl_module, self.folder)
        self._catch(self._receive)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore()

    def _catch(self, receive: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):  # replaces Lightning's, which signals other processes
                self._handlers[number] = signal.signal(number, receive)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum, self._signalled = signum, time.monotonic()

    def _end(self, signum: int, _: FrameType | None) -> None:
        """Ends the test immediately: nothing has to be saved."""
        raise Stopped(
            signum, f"stopped by {signal.Signals(signum).name} in the test; resume with: {self._resume_command()}"
        )

    def _resume_command(self) -> str:
        return command("kd-train", resume=relative(self.folder.parent))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not complete or batch_idx + 1 >= trainer.num_training_batches or validates_next(trainer):
            return  # a run resumed before a pending validation would skip it
        due = self.signum is not None or self._due(trainer.global_step)
        if trainer.world_size > 1:  # all processes save or none, and they do not communicate at every step
            if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
                return
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            self._save(trainer)
            self._stop(trainer, log_step=True)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        late = self.signum is not None and time.monotonic() - self._signalled > PATIENCE
        if late and trainer.world_size == 1 and not trainer.sanity_checking:
            self._raise(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()
        if trainer.is_global_zero:
            (self.folder / PREVIOUS).unlink(missing_ok=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _due(self, step: int) -> bool:
        minutes = (time.monotonic() - self._saved_at) / 60
        in_time = self.minutes is not None and minutes >= self.minutes
        return in_time or (self.steps is not None and step - self._saved_step >= self.steps)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # so that the curves reach the checkpoint
        last = self.folder / LAST
        if trainer.is_global_zero and last.is_file():
            link = self.folder / f".{PREVIOUS}.{os.getpid()}.tmp"
            link.unlink(missing_ok=True)
            try:
                os.link(last, link)
                os.replace(link, self.folder / PREVIOUS)
            except OSError:  # no hard links on this file system: one fallback less
                link.unlink(missing_ok=True)
        trainer.save_checkpoint(last, self.save_weights_only)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _stop(self, trainer: pl.Trainer, log_step: bool = False) -> None:
        signum = torch.tensor(self.signum or 0, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            signum = trainer.strategy.reduce(signum, reduce_op="max")
        if int(signum):
            self.signum = int(signum)
            if log_step:
                log_train_step(trainer)  # Lightning does so after this hook
            self._raise(trainer)

    def _raise(self, trainer: pl.Trainer) -> None:
        assert self.signum is not None
        name = signal.Signals(self.signum).name
        raise Stopped(
            self.signum, f"stopped by {name} at step {trainer.global_step}; resume with: {self._resume_command()}"
        )


def check_disk_space(module: nn.Module, folder: Path) -> None:
    """Checks that the disk has space for two checkpoints of a module in training.

    Raises:
        InputError: it does not.
    """
    state = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    needed, free = 2 * 3 * state, shutil.disk_usage(folder).free  # two files; weights and up to two moments in each
    if free < needed:
        sizes = f"{free / 1e6:.1f} MB are free, two checkpoints need about {needed / 1e6:.1f} MB"
        raise InputError(f"{folder}: no space left for checkpoints: {sizes}; set another hydra.run.dir")
