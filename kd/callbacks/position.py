"""The position of a run within an epoch, saved in checkpoints and restored exactly."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, StochasticWeightAveraging, Timer
from torch.optim.lr_scheduler import LambdaLR

from kd.callbacks._lightning import duration_of, is_resumed, set_last_rates, set_reload_epoch
from kd.data.batch import Batch
from kd.data.datamodule import data_of, image_data
from kd.data.loader import batches_of
from kd.errors import InputError
from kd.run_folder.checkpoints import FORMAT, Saved
from kd.run_folder.layout import versions

log = logging.getLogger(__name__)


class Position(Callback):
    """Saves the run's position in each checkpoint, and resumes from there.

    A checkpoint's entry ``kd`` holds its format, the digests of data and teacher, the position and the versions.
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
        reopen_epoch(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            restore_position(trainer, checkpoint)
            restore_loader(trainer, checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None:
            restore_rates(trainer)
            restore_average(trainer, pl_module)


def check_same_run(checkpoint: Saved, data: Any, teacher: str | None, changed: bool = False) -> None:
    """Checks that a checkpoint belongs to this data and this teacher, given by its sha256.

    Args:
        checkpoint: as read from the run folder.
        data: the data module.
        teacher: the sha256 of the teacher's weights.
        changed: whether other data only leads to a warning.

    Raises:
        InputError: other data or another teacher than the checkpoint's.
    """
    path, content = checkpoint
    for kind, current in (("data", sha256_of(data)), ("teacher", teacher)):
        recorded = content["kd"].get(f"{kind}_sha256")
        if current == recorded:
            continue
        message = f"{path} was trained with another {kind}: sha256 {recorded} in the checkpoint, {current} now"
        if kind == "teacher" or not changed:
            hint = "; if it was changed on purpose, set resume_data=changed" if kind == "data" else ""
            raise InputError(f"{message}{hint}")
        log.warning("resume: %s; resumed anyway, as resume_data=changed is set", message)
    before, now = content["kd"].get("versions", {}).get("torch"), versions()["torch"]
    if before != now:
        log.warning("resume: trained with torch %s so far and %s from now on; rounding may differ", before, now)
    log.info("resume: from step %d, %s", content["global_step"], path)


def sha256_of(data: Any) -> str | None:
    """The data's sha256; None for a data module that cannot compute it."""
    return image_data(data).describe().get("sha256")


def validation_batches(trainer: pl.Trainer, module: Any) -> Generator[Batch]:
    """The validation set's batches on the device, without augmentation, during training."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    loader = trainer.val_dataloaders if data is None else data.val_dataloader()
    trainer.validating = True  # otherwise the data augments these images
    try:
        for raw in loader or ():
            yield module.batch(trainer.strategy.batch_to_device(raw, dataloader_idx=0), "val")
    finally:
        trainer.training = True


def position_of(trainer: pl.Trainer) -> dict[str, Any]:
    """A run's position: the number of samples of the epoch that were processed, over all processes."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches = 0 if progress.is_last_batch else progress.current.processed  # type: ignore[attr-defined]
    size = data_of(trainer).batch_size or 0
    steps = int(trainer.estimated_stepping_batches)
    position = {"samples": batches * size * trainer.world_size, "world": trainer.world_size}
    position |= {"steps": steps, "epochs": trainer.max_epochs or 0}
    return {**position, "stopped_early": bool(trainer.should_stop), "limits": _limits(trainer)}


def _limits(trainer: pl.Trainer) -> list[Any]:
    """The limits of the training in epochs, steps and seconds."""
    timers = [duration_of(callback) for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return [trainer.max_epochs, trainer.max_steps, *timers]


def reopen_epoch(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Marks the epoch as unfinished in a checkpoint of a run that ended in mid-epoch, by its limit of steps or time.

    Lightning counts such an epoch as finished, so that an extended run would skip the rest of it.
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
    """Sets the data to the position of a checkpoint, for the present number of processes.

    Lightning counts batches per process, so with another number of processes its counters are rewritten, as is the
    schedule, which follows the finished fraction of the run.
    """
    for line in (".*and is not empty", ".*your dataloader is not resumable"):  # kd's data is, by `start`
        warnings.filterwarnings("ignore", message=line)
    position, data = checkpoint["kd"]["place"], data_of(trainer)
    if position.get("stopped_early") and position["limits"] == _limits(trainer):
        trainer.should_stop = True
    if position["samples"]:
        if data.start is None:
            name = type(data.lightning).__name__
            log.warning("resume: %s has no `start`, so the rest of this epoch is drawn in its own order", name)
        else:
            data.start = position["samples"]
    if position["world"] == trainer.world_size:
        return
    if position["samples"]:
        done = position["samples"]
        count = done if data.train_labels is None else len(data.train_labels) or done
        sizes = (data.batch_size or 0, trainer.world_size, data.drop_last)
        batches = batches_of(count, *sizes) - batches_of(count - done, *sizes)  # all without those to come
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        current |= {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    epochs = (trainer.max_epochs or 0) / position.get("epochs", trainer.max_epochs)
    share = int(trainer.estimated_stepping_batches) / position["steps"] / epochs  # of the steps per epoch
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = round(scheduler["last_epoch"] * share)


def restore_loader(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Creates the loader of an epoch that is resumed in its middle: Lightning would create it twice."""
    every, epoch = trainer.reload_dataloaders_every_n_epochs, checkpoint["epoch"]  # type: ignore[attr-defined]
    if every and checkpoint["kd"]["place"]["samples"]:
        trainer.fit_loop.setup_data()
        set_reload_epoch(trainer, epoch - epoch % every)


def restore_rates(trainer: pl.Trainer) -> None:
    """Sets the learning rates of this run's schedule: a checkpoint has those of the length planned at that time."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, LambdaLR):
            continue
        rates = [base * rule(scheduler.last_epoch) for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates):
            group["lr"] = rate
        set_last_rates(scheduler, rates)


def restore_average(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Restores SWA's schedule: Lightning does so at the start of an epoch, which a run resumed in mid-epoch lacks.

    Creating the schedule changes the learning rates, which were already restored from the checkpoint.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, StochasticWeightAveraging) or not is_resumed(callback):
            continue
        if callback.swa_start <= trainer.current_epoch <= callback.swa_end:
            groups = trainer.optimizers[0].param_groups
            rates = [group["lr"] for group in groups]
            callback.on_train_epoch_start(trainer, module)
            for group, rate in zip(groups, rates):
                group["lr"] = rate
