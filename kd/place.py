"""Where a run stands among the samples of an epoch, and how it goes on from exactly there."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from typing import Any

import pytorch_lightning as pl

from kd.checkpoints import Saved
from kd.data.batch import Batch
from kd.errors import InputError
from kd.run import versions

log = logging.getLogger(__name__)


def check(found: Saved, data: Any, teacher: str | None) -> None:
    """Whether a checkpoint is of this data and this teacher, whose sha256 is given.

    Raises:
        InputError: other data or another teacher than the checkpoint's.
    """
    path, content = found
    for what, here in (("data", sha256_of(data)), ("teacher", teacher)):
        there = content["kd"].get(f"{what}_sha256")
        if here != there:
            raise InputError(f"{path} was trained with another {what}: sha256 {there} there, {here} here")
    before, now = content["kd"].get("versions", {}).get("torch"), versions()["torch"]
    if before != now:
        log.warning("resume: trained by torch %s so far, from now on by %s, which may round otherwise", before, now)
    log.info("resume: from step %d, %s", content["global_step"], path)


def sha256_of(data: Any) -> str | None:
    """The data's sha256, where it can say it."""
    return data.describe()["sha256"] if hasattr(data, "describe") else None


def validation_batches(trainer: pl.Trainer, module: Any) -> Generator[Batch]:
    """The validation set's batches on the device, without augmentation, in the midst of training."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    loader = trainer.val_dataloaders if data is None else data.val_dataloader()
    trainer.validating = True  # else the data would augment these images
    try:
        for raw in loader or ():
            yield module.batch(trainer.strategy.batch_to_device(raw, dataloader_idx=0), "val")
    finally:
        trainer.training = True


def place_of(trainer: pl.Trainer) -> dict[str, int]:
    """Where a run stands: the samples of the epoch that are done, over all processes."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches = 0 if progress.is_last_batch else progress.current.processed  # type: ignore[attr-defined]
    size = getattr(trainer.datamodule, "batch_size", 0)  # type: ignore[attr-defined]
    steps = int(trainer.estimated_stepping_batches)
    place = {"samples": batches * size * trainer.world_size, "world": trainer.world_size}
    return {**place, "steps": steps, "epochs": trainer.max_epochs or 0}


def go_on(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Sets the data to the place where a checkpoint stands, for the count of processes that there are now.

    Lightning counts batches of a process, so with another count of processes its counters are rewritten, and the
    schedule, which follows the share of the run that is done.
    """
    for line in (".*and is not empty", ".*your dataloader is not resumable"):  # it is, by `start`
        warnings.filterwarnings("ignore", message=line)
    place, data = checkpoint["kd"]["place"], trainer.datamodule  # type: ignore[attr-defined]
    if place["samples"]:
        if not hasattr(data, "start"):
            name = type(data).__name__
            log.warning("resume: %s has no `start`, so it gives the rest of this epoch out of its own order", name)
        else:
            data.start = place["samples"]
    if place["world"] == trainer.world_size:
        return
    if place["samples"]:
        size, done = data.batch_size * trainer.world_size, place["samples"]
        count = len(getattr(data, "train_labels", ())) or done
        batches = count // size - (count - done) // size  # those of the epoch but for those still to come
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        current |= {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    epochs = (trainer.max_epochs or 0) / place.get("epochs", trainer.max_epochs)
    share = int(trainer.estimated_stepping_batches) / place["steps"] / epochs  # of the steps of one epoch
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = round(scheduler["last_epoch"] * share)
