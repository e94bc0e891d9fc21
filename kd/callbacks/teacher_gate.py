"""The check that the teacher is accurate enough, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from kd.callbacks.position import validation_batches
from kd.data.batch import Batch
from kd.distill.ensemble import Ensemble
from kd.distill.teacher import FrozenTeacher
from kd.errors import InputError
from kd.losses.cross_entropy import class_of
from kd.models.normalized import unwrap

log = logging.getLogger(__name__)

SKILL = 0.1


class TeacherGate(Callback):
    """Measures the teacher, and each member of an ensemble, on validation data; ends the run if it is too inaccurate.

    Args:
        min_accuracy: the least accuracy by member's name, the teacher's own under ``""``; None requires a tenth of the
            way from chance to 1, where chance is the share of the most frequent class.

    After ``on_train_start``, ``accuracy`` holds the measured accuracies under the same names.

    Raises:
        InputError: non-finite logits, too low an accuracy, or a last layer that was never trained.
    """

    def __init__(self, min_accuracy: Mapping[str, float | None] | None = None) -> None:
        self.min_accuracy = dict(min_accuracy or {})
        for name, least in self.min_accuracy.items():
            if least is not None and not 0 <= least <= 1:
                raise InputError(f"{_key(name)}.min_accuracy must lie in [0, 1], got {least:g}")
        self.accuracy: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not isinstance(pl_module.teacher, FrozenTeacher):
            return  # none, or one that is trained during the run
        counts = self._count(trainer, pl_module)
        totals = {name: trainer.strategy.reduce(numbers, reduce_op="sum").tolist() for name, numbers in counts.items()}
        self._evaluate(pl_module.teacher, totals, trainer.is_global_zero)

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints, which keeps the former name of the class."""
        return "Gate"

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy = dict(state_dict["accuracy"])

    @staticmethod
    def _count(trainer: pl.Trainer, module: Any) -> dict[str, Tensor]:
        """For each teacher's name the number of correct images, of images with non-finite logits, and of each class."""
        counts: dict[str, Tensor] = {}
        for step, batch in enumerate(validation_batches(trainer, module)):
            labels = class_of(batch.labels)
            classes = torch.bincount(labels[labels >= 0], minlength=module.classes)
            for name, logits in _logits(module, batch, step).items():
                correct = (logits.argmax(-1) == labels).sum()
                invalid = (~logits.isfinite().all(-1)).sum()
                counts[name] = counts.get(name, 0) + torch.cat([torch.stack([correct, invalid]), classes])
        return counts

    def _evaluate(self, teacher: FrozenTeacher, totals: dict[str, list[int]], prints: bool) -> None:
        for name, (correct, invalid, *classes) in totals.items():
            label, count = f"teacher {name}".strip(), sum(classes)
            if invalid:
                raise InputError(f"the {label} gives non-finite logits for {invalid} of {count} validation images")
            if not count:
                raise InputError(f"no validation image has a label, so the accuracy of the {label} cannot be measured")
            self.accuracy[name] = correct / count
            if prints:
                log.info("%s: validation accuracy %.2f %% (%d images)", label, 100 * correct / count, count)
            self._check(teacher, name, max(classes) / count)

    def _check(self, teacher: FrozenTeacher, name: str, chance: float) -> None:
        accuracy, least = self.accuracy[name], self.min_accuracy.get(name)
        if accuracy >= (chance + SKILL * (1 - chance) if least is None else least):
            return
        key = _key(name)
        result = f"the teacher {name}".strip() + f" has a validation accuracy of {accuracy:.2%}"
        if least is not None:
            raise InputError(f"{result}, less than {key}.min_accuracy={least:g}")
        network = teacher.networks().get(name)
        untrained = network is not None and getattr(unwrap(network), "untrained_head", False)
        reason = "its last layer is new and untrained" if untrained else "near chance"
        raise InputError(
            f"{result}, {reason} (chance is {chance:.2%}): train it first (student=TEACHER teacher=none objective=ce) "
            f"and set {key}.checkpoint; check {key}.mean, .std and .classes; or set {key}.min_accuracy=0"
        )


def _key(name: str) -> str:
    return f"teacher.members.{name}" if name else "teacher"


def _logits(module: Any, batch: Batch, step: int) -> dict[str, Tensor]:
    """The teacher's logits, which the module caches for its own validation, and those of an ensemble's members."""
    logits = {"": module.answer("val", batch, step)}
    if isinstance(module.teacher, Ensemble):
        logits |= {name: member(batch)[""] for name, member in module.teacher.members.items()}
    return logits
