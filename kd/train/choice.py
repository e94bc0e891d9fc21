"""Chooses which of a run's students is tested and saved, and describes the choice as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch import Tensor

from kd.callbacks._lightning import averaged_models, load_average, updates_statistics
from kd.callbacks.history import History
from kd.callbacks.modes import validated
from kd.data.datamodule import ImageData

BEST = "at the best validation epoch"


class Choice(NamedTuple):
    """The chosen student.

    Attributes:
        weights: its state dict, None for the weights in memory.
        scores: its validation scores.
        words: which student it is, as text.
        monitor: the metric by which it was chosen, None if there is none.
    """

    weights: dict[str, Tensor] | None
    scores: dict[str, float]
    words: str
    monitor: str | None = None


def choose(trainer: pl.Trainer, module: pl.LightningModule, data: ImageData, record: History) -> Choice:
    """The student of a finished training: averaged weights, the best validated ones, else the last.

    The best checkpoint is that of the first ``ModelCheckpoint`` that monitors a metric. With a moving average, it
    contains the averaged weights; the average of ``StochasticWeightAveraging`` is computed at the end of training, so
    it is validated here.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            load_average(callback, module)  # on_train_end did, except in a run resumed at its end
        if isinstance(callback, StochasticWeightAveraging) and _is_averaged(trainer, callback):
            return Choice(None, _averaged(trainer, module, data, record, callback), _words_of_average(callback))
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    path = Path(best.best_model_path) if best is not None and best.best_model_path else None
    if best is None or path is None or not path.is_file():
        return Choice(None, record.at(trainer.global_step), _words_of_last(trainer, record, best))
    content = trainer.strategy.load_checkpoint(path)  # only its weights: states of callbacks are for training
    step = content["global_step"]
    scores = record.at(step)
    words = _words_of_best(scores, step, record, best, trainer)
    return Choice(content["state_dict"], scores, words, best.monitor)


def _words_of_last(trainer: pl.Trainer, record: History, best: ModelCheckpoint | None) -> str:
    if not record.epochs:
        return "of the last epoch; nothing was validated"
    unseen = "" if record.at(trainer.global_step) else ", which was not validated"
    if best is None:
        return f"of the last epoch{unseen}; no callback keeps the best"
    return f"of the last epoch{unseen}; there is no checkpoint of the best"


def _words_of_best(
    scores: Mapping[str, float], step: int, record: History, best: ModelCheckpoint, trainer: pl.Trainer
) -> str:
    monitor = str(best.monitor)
    words = BEST if monitor == "val/acc" else f"{BEST if validated(monitor) else 'at the best epoch'} by {monitor}"
    if not scores:
        words = f"of step {step}, kept by {monitor} and not validated"
    elif monitor in scores:
        pick = min if best.mode == "min" else max
        validated_epochs = [row for row in record.epochs if not math.isnan(row.get(monitor, math.nan))]
        top = pick(validated_epochs, key=lambda row: row[monitor], default=scores)
        if top[monitor] != scores[monitor]:
            epoch, other = int(scores["epoch"]), int(top["epoch"])
            words = f"of epoch {epoch}; epoch {other} was better by {monitor}, but its checkpoint is missing"
    unseen = trainer.global_step - int(record.epochs[-1]["step"]) if record.epochs else 0
    return f"{words}; the last {unseen} steps were not validated" if unseen else words


def _is_averaged(trainer: pl.Trainer, callback: StochasticWeightAveraging) -> bool:
    """Whether training reached the end of the averaging, instead of stopping before it."""
    last = callback.swa_end + updates_statistics(callback)
    return averaged_models(callback) > 0 and trainer.current_epoch > last


def _averaged(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: ImageData,
    record: History,
    callback: StochasticWeightAveraging,
) -> dict[str, float]:
    """Validates the averaged weights, which it loads into the module, and returns the scores."""
    if not updates_statistics(callback):  # else a final epoch has updated its statistics and validated it
        load_average(callback, module)
        trainer.validate(module, datamodule=data.lightning, verbose=False)
    return record.last()


def _words_of_average(callback: StochasticWeightAveraging) -> str:
    return f"of the averaged weights ({type(callback).__name__})"
