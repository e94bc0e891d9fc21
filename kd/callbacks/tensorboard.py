"""TensorBoard's logger for runs that may be resumed, on disks that may be full."""

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
    """Lightning's logger, where a disk error ends the curves and not the run.

    Args:
        save_dir: the folder of the event files.
        name: a subfolder, "" for none.
        version: a subfolder of that, "" for none.
        purge_step: the optimiser step from which a run is resumed: points logged at it or later are hidden.
        default_hp_metric: as in Lightning.
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
        self.failed = False
        threading.excepthook = _without_disk_faults(threading.excepthook)

    @contextmanager
    def tolerating(self) -> Iterator[None]:
        """Warns once of a disk error instead of raising it."""
        try:
            yield
        except Exception as error:
            fault = disk_fault(error)
            if fault is None:
                raise
            if not self.failed:
                log.warning("tensorboard: %s in %s; the curves end here, training continues", fault, self.log_dir)
            self.failed = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.failed:
            with self.tolerating():
                super().log_metrics(metrics, step)

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        if not self.failed:
            with self.tolerating():
                super().log_hyperparams(*arguments, **options)

    def save(self) -> None:
        if not self.failed:
            with self.tolerating():
                super().save()

    def finalize(self, status: str) -> None:
        with self.tolerating():
            super().finalize(status)


@contextmanager
def board(trainer: pl.Trainer) -> Iterator[SummaryWriter | None]:
    """The TensorBoard writer of a run, on the first process, if there is one and its disk has not failed."""
    boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not boards or not trainer.is_global_zero or getattr(boards[0], "failed", False):
        yield None
    elif isinstance(boards[0], TensorBoard):
        with boards[0].tolerating():
            yield boards[0].experiment
    else:
        yield boards[0].experiment


def _without_disk_faults(previous: Any) -> Any:
    """Suppresses the traceback of the writer's thread for a disk error, which the caller reports in one line."""

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not (isinstance(arguments.exc_value, OSError) and "Writer" in type(arguments.thread).__name__):
            previous(arguments)

    return hook
