"""The position of a run among the samples of an epoch, and how it is resumed from exactly there."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, StochasticWeightAveraging, Timer
from torch.optim.lr_scheduler import LambdaLR

from kd.data.batch import Batch
from kd.data.datamodule import data_of, image_data
from kd.data.loader import batches_of
from kd.errors import InputError
from kd.run_folder.checkpoints import FORMAT, Saved
from kd.run_folder.layout import versions

log = logging.getLogger(__name__)


class Position(Callback):
    """Keeps in each checkpoint where the run stands, and resumes from there.

    A checkpoint's record ``kd`` holds its format, the digests of data and teacher, the position and the versions.
    """

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if pl_module.teacher is not None:
            pl_module.teacher.flush()
        checkpoint["kd"] = {
            "format_version": FORMAT,
            "teacher_sha256": pl_module.teacher_sha256,
            "data_sha256": sha256_of(data_of(trainer)),
            "place": position_of(trainer),
            "versions": versions(),
        }
        unfinish(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            restore_position(trainer, checkpoint)
            keep_loader(trainer, checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None:
            set_rates(trainer)
            begin_average(trainer, pl_module)


def check_same_run(found: Saved, data: Any, teacher: str | None, changed: bool = False) -> None:
    """Whether a checkpoint is of this data and this teacher, whose sha256 is given; of other data if ``changed``.

    Raises:
        InputError: other data or another teacher than the checkpoint's.
    """
    path, content = found
    for what, here in (("data", sha256_of(data)), ("teacher", teacher)):
        there = content["kd"].get(f"{what}_sha256")
        if here == there:
            continue
        told = f"{path} was trained with another {what}: sha256 {there} there, {here} here"
        if what == "teacher" or not changed:
            anyway = "; if it was repaired on purpose, resume_data=changed resumes with it" if what == "data" else ""
            raise InputError(f"{told}{anyway}")
        log.warning("resume: %s; resumed all the same, as resume_data=changed asks", told)
    before, now = content["kd"].get("versions", {}).get("torch"), versions()["torch"]
    if before != now:
        log.warning("resume: trained by torch %s so far, from now on by %s, which may round otherwise", before, now)
    log.info("resume: from step %d, %s", content["global_step"], path)


def sha256_of(data: Any) -> str | None:
    """The data's sha256, where it can say it."""
    return image_data(data).describe().get("sha256")


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


def position_of(trainer: pl.Trainer) -> dict[str, Any]:
    """Where a run stands: the samples of the epoch that are done, over all processes."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches = 0 if progress.is_last_batch else progress.current.processed  # type: ignore[attr-defined]
    size = data_of(trainer).batch_size or 0
    steps = int(trainer.estimated_stepping_batches)
    place = {"samples": batches * size * trainer.world_size, "world": trainer.world_size}
    place |= {"steps": steps, "epochs": trainer.max_epochs or 0}
    return {**place, "stopped_early": bool(trainer.should_stop), "limits": _limits(trainer)}


def _limits(trainer: pl.Trainer) -> list[Any]:
    """How long the training may be, in epochs, steps and seconds."""
    timers = [callback._duration for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return [trainer.max_epochs, trainer.max_steps, *timers]


def unfinish(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Lets a checkpoint of a run that ended in mid-epoch, by its limit of steps or time, be one of that place.

    Lightning counts such an epoch as done, so that a longer run would leave out the rest of it.
    """
    fit, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop.batch_progress
    epochs = fit.epoch_progress.current
    if batches.is_last_batch or not batches.current.processed or epochs.processed < epochs.started:  # type: ignore[attr-defined]
        return
    loops = checkpoint["loops"]["fit_loop"]
    for part in ("total", "current"):
        loops["epoch_progress"][part]["processed"] -= 1
        loops["epoch_loop.batch_progress"][part]["completed"] -= 1
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def restore_position(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Sets the data to the place where a checkpoint stands, for the count of processes that there are now.

    Lightning counts batches of a process, so with another count of processes its counters are rewritten, and the
    schedule, which follows the share of the run that is done.
    """
    for line in (".*and is not empty", ".*your dataloader is not resumable"):  # it is, by `start`
        warnings.filterwarnings("ignore", message=line)
    place, data = checkpoint["kd"]["place"], data_of(trainer)
    if place.get("stopped_early") and place["limits"] == _limits(trainer):
        trainer.should_stop = True
    if place["samples"]:
        if data.start is None:
            name = type(data.lightning).__name__
            log.warning("resume: %s has no `start`, so it gives the rest of this epoch out of its own order", name)
        else:
            data.start = place["samples"]
    if place["world"] == trainer.world_size:
        return
    if place["samples"]:
        done = place["samples"]
        count = done if data.train_labels is None else len(data.train_labels) or done
        given = (data.batch_size or 0, trainer.world_size, data.drop_last)
        batches = batches_of(count, *given) - batches_of(count - done, *given)  # but for those still to come
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        current |= {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    epochs = (trainer.max_epochs or 0) / place.get("epochs", trainer.max_epochs)
    share = int(trainer.estimated_stepping_batches) / place["steps"] / epochs  # of the steps of one epoch
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = round(scheduler["last_epoch"] * share)


def keep_loader(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Makes the loader of an epoch that is resumed in its middle: Lightning would make it, and then one anew."""
    every, epoch = trainer.reload_dataloaders_every_n_epochs, checkpoint["epoch"]  # type: ignore[attr-defined]
    if every and checkpoint["kd"]["place"]["samples"]:
        trainer.fit_loop.setup_data()
        trainer.fit_loop._last_train_dl_reload_epoch = epoch - epoch % every


def set_rates(trainer: pl.Trainer) -> None:
    """Gives the optimisers the rates of this run's schedule: a checkpoint has those of the length planned then."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, LambdaLR):
            continue
        rates = [base * rule(scheduler.last_epoch) for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates):
            group["lr"] = rate
        scheduler._last_lr = rates


def begin_average(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Gives SWA's schedule back: Lightning does at an epoch's start, which one resumed in its middle does not have.

    Making the schedule changes the rates, which the checkpoint has restored already.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, StochasticWeightAveraging) or callback._scheduler_state is None:
            continue
        if callback.swa_start <= trainer.current_epoch <= callback.swa_end:
            groups = trainer.optimizers[0].param_groups
            rates = [group["lr"] for group in groups]
            callback.on_train_epoch_start(trainer, module)
            for group, rate in zip(groups, rates):
                group["lr"] = rate
