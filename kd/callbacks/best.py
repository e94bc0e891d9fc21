"""The callback that saves the best epoch, and how ties are broken."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from kd.callbacks.modes import validated

log = logging.getLogger(__name__)


class Best(ModelCheckpoint):
    """Lightning's ModelCheckpoint for run folders that may be moved.

    Ties of the monitored metric are broken by the lower ``val/nll``, then by the later epoch. A validation metric is
    never attributed to a later step. With ``save_top_k`` other than 1, each checkpoint has its own file.

    It overrides private methods of ``ModelCheckpoint``, as of pytorch-lightning 2.6.6.
    """

    _validated_at = -1
    _tied: Mapping[str, tuple[float, int]] = {}  # path to val/nll and step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        with warnings.catch_warnings():  # about checkpoints in the folder, which a resumed run has
            warnings.filterwarnings("ignore", message=".*and is not empty")
            super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated_at = trainer.global_step
        due = self._defer_save_until_validation and not self._should_skip_saving_checkpoint(trainer)
        super().on_validation_end(trainer, pl_module)
        if due and self._defer_save_until_validation:  # Lightning defers it to the end of the epoch, and omits it there
            self._defer_save_until_validation = False
            super()._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        if current is None or self.save_top_k < 1 or len(self.best_k_models) < self.save_top_k:
            return super().check_monitor_top_k(trainer, current)
        better = self._rank(current, *_tie(trainer)) > self._rank_of(self.kth_best_model_path)
        return trainer.strategy.reduce_boolean_decision(better and not bool(current.isnan()))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "tied": {path: list(tie) for path, tie in self._tied.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = state_dict["dirpath"], self.dirpath
        moved = partial(moved_to, before=before, now=now)
        state = dict(state_dict) | {"dirpath": now} if before != now else dict(state_dict)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = moved(state[key])
        state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)
        self.current_score = state["current_score"]  # Lightning saves it and does not restore it
        self._tied = {moved(path): (float(nll), int(step)) for path, (nll, step) in state.get("tied", {}).items()}
        self._forget([path for path in self.best_k_models if not Path(path).is_file()])

    def _forget(self, absent: list[str]) -> None:
        """Removes missing checkpoints from the ranking."""
        for path in absent:
            log.warning("resume: %s is missing; the best epoch is chosen among the others", path)
            del self.best_k_models[path]
        if absent:
            self.best_model_path = self.kth_best_model_path = ""
            self.best_model_score = None
            self._choose()

    def _save_topk_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if validated(self.monitor) and self._validated_at not in (-1, trainer.global_step):
            self._defer_save_until_validation = True
            return
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _get_metric_interpolated_filepath_name(
        self, monitor_candidates: dict[str, Tensor], trainer: pl.Trainer, del_filepath: str | None = None
    ) -> str:
        path = super()._get_metric_interpolated_filepath_name(monitor_candidates, trainer, del_filepath)
        if self.save_top_k == 1 or ("{" in (self.filename or "{") and path not in self.best_k_models):
            return path
        return str(Path(path).with_name(f"{Path(path).stem}-step{trainer.global_step}{self.FILE_EXTENSION}"))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if filepath in self.best_k_models:
            self._tied = {**self._tied, filepath: _tie(trainer)}
            self._choose()
        super()._save_checkpoint(trainer, filepath)

    def _choose(self) -> None:
        """Sets the best and the worst of the saved checkpoints, by :meth:`_rank_of`."""
        self._tied = {path: tie for path, tie in self._tied.items() if path in self.best_k_models}
        if not self.best_k_models:
            return
        self.best_model_path = max(self.best_k_models, key=self._rank_of)
        self.best_model_score = self.best_k_models[self.best_model_path]
        if len(self.best_k_models) == self.save_top_k:
            self.kth_best_model_path = min(self.best_k_models, key=self._rank_of)
            self.kth_value = self.best_k_models[self.kth_best_model_path]

    def _rank_of(self, path: str) -> tuple[float, float, int]:
        return self._rank(self.best_k_models[path], *self._tied.get(path, (torch.inf, -1)))

    def _rank(self, score: Tensor, nll: float, step: int) -> tuple[float, float, int]:
        return float(score) * (1 if self.mode == "max" else -1), -nll, step


def moved_to(path: str, before: str | None, now: str | Path | None) -> str:
    """A checkpoint's path after its run folder was moved."""
    if not path or not now:
        return path
    inside = before and Path(path).is_relative_to(before)
    return str(Path(now) / (Path(path).relative_to(before) if inside else Path(path).name))  # type: ignore[arg-type]


def _tie(trainer: pl.Trainer) -> tuple[float, int]:
    """What breaks a tie: the validation NLL and the step."""
    return float(trainer.callback_metrics.get("val/nll", torch.inf)), trainer.global_step
