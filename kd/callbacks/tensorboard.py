"""TensorBoard's logger for runs that may be stopped and gone on with, on disks that may be full."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from kd.errors import disk_fault

log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """Lightning's logger; what the disk refuses costs the curves and not the run.

    Args:
        save_dir: where the event files lie.
        name: a folder below it, "" for none.
        version: a folder below that, "" for none.
        purge_step: the optimiser step from which a run goes on: what was logged at it or later is not shown.
        default_hp_metric: as Lightning has it.
    """

    def __init__(
        self,
        save_dir: str,
        name: str = "",
        version: str = "",
        purge_step: int | None = None,
        default_hp_metric: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version, default_hp_metric=default_hp_metric, purge_step=purge_step, **kwargs)
        self.refused = False
        threading.excepthook = _without_disk_faults(threading.excepthook)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Says once what the disk complains of, instead of raising it."""
        try:
            yield
        except Exception as error:
            fault = disk_fault(error)
            if fault is None:
                raise
            if not self.refused:
                log.warning("tensorboard: %s in %s; the curves end here, training goes on", fault, self.log_dir)
            self.refused = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.refused:
            with self.spared():
                super().log_metrics(metrics, step)

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        if not self.refused:
            with self.spared():
                super().log_hyperparams(*arguments, **named)

    def save(self) -> None:
        if not self.refused:
            with self.spared():
                super().save()

    def finalize(self, status: str) -> None:
        with self.spared():
            super().finalize(status)


@contextmanager
def board(trainer: pl.Trainer) -> Iterator[SummaryWriter | None]:
    """The TensorBoard writer of a run, on the first process, if it has one and its disk takes more."""
    boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not boards or not trainer.is_global_zero or getattr(boards[0], "refused", False):
        yield None
    elif isinstance(boards[0], TensorBoard):
        with boards[0].spared():
            yield boards[0].experiment
    else:
        yield boards[0].experiment


def _without_disk_faults(before: Any) -> Any:
    """The writer's thread leaves its fault to the caller, who says it in one line; no traceback is due as well."""

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not (isinstance(arguments.exc_value, OSError) and "Writer" in type(arguments.thread).__name__):
            before(arguments)

    return hook
