"""The teacher's gate: before step one it has to show that it can teach."""

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
    """Measures the teacher, and each member of an ensemble, on validation data, and stops the run if it cannot teach.

    Args:
        min_accuracy: the least share of right answers by member's name, the teacher's own under ``""``; None asks
            for a tenth of the way from chance to perfection, where chance is the share of the most frequent class.

    After ``on_train_start``, ``accuracy`` holds the shares by the same names.

    Raises:
        InputError: logits that are not finite, too few right answers, or a last layer that was never trained.
    """

    def __init__(self, min_accuracy: Mapping[str, float | None] | None = None) -> None:
        self.min_accuracy = dict(min_accuracy or {})
        for name, least in self.min_accuracy.items():
            if least is not None and not 0 <= least <= 1:
                raise InputError(f"{_place(name)}.min_accuracy must lie in [0, 1], got {least:g}")
        self.accuracy: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not isinstance(pl_module.teacher, FrozenTeacher):
            return  # there is none, or it is yet to learn
        tally = self._tally(trainer, pl_module)
        counted = {name: trainer.strategy.reduce(numbers, reduce_op="sum").tolist() for name, numbers in tally.items()}
        self._conclude(pl_module.teacher, counted, trainer.is_global_zero)

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints, also in those that were written before the class had this name."""
        return "Gate"

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy = dict(state_dict["accuracy"])

    @staticmethod
    def _tally(trainer: pl.Trainer, module: Any) -> dict[str, Tensor]:
        """For each name of a teacher the count of right answers, of answers that are not finite, and of each class."""
        tally: dict[str, Tensor] = {}
        for step, batch in enumerate(validation_batches(trainer, module)):
            labels = class_of(batch.labels)
            classes = torch.bincount(labels[labels >= 0], minlength=module.classes)
            for name, logits in _answers(module, batch, step).items():
                right = (logits.argmax(-1) == labels).sum()
                bad = (~logits.isfinite().all(-1)).sum()
                tally[name] = tally.get(name, 0) + torch.cat([torch.stack([right, bad]), classes])
        return tally

    def _conclude(self, teacher: FrozenTeacher, counted: dict[str, list[int]], aloud: bool) -> None:
        for name, (right, bad, *classes) in counted.items():
            who, count = f"teacher {name}".strip(), sum(classes)
            if bad:
                raise InputError(f"the {who} gives logits that are not finite for {bad} of {count} validation images")
            if not count:
                raise InputError(f"no validation image has a label, and the {who} cannot be measured without")
            self.accuracy[name] = right / count
            if aloud:
                log.info("%s: %.2f %% of %d validation images right", who, 100 * right / count, count)
            self._judge(teacher, name, max(classes) / count)

    def _judge(self, teacher: FrozenTeacher, name: str, chance: float) -> None:
        share, asked = self.accuracy[name], self.min_accuracy.get(name)
        if share >= (chance + SKILL * (1 - chance) if asked is None else asked):
            return
        at = _place(name)
        said = f"the teacher {name}".strip() + f" gets {share:.2%} of the validation images right"
        if asked is not None:
            raise InputError(f"{said}, less than {at}.min_accuracy={asked:g}")
        network = teacher.networks().get(name)
        untrained = network is not None and getattr(unwrap(network), "untrained_head", False)
        why = "its last layer is new and untrained" if untrained else "near chance"
        raise InputError(
            f"{said}, {why} (chance is {chance:.2%}): train it first (student=TEACHER teacher=none objective=ce) and "
            f"give {at}.checkpoint; check {at}.mean, .std and .classes; or say {at}.min_accuracy=0"
        )


def _place(name: str) -> str:
    return f"teacher.members.{name}" if name else "teacher"


def _answers(module: Any, batch: Batch, step: int) -> dict[str, Tensor]:
    """The teacher's logits, which the module keeps for its own validation, and those of an ensemble's members."""
    answers = {"": module.answer("val", batch, step)}
    if isinstance(module.teacher, Ensemble):
        answers |= {name: member(batch)[""] for name, member in module.teacher.members.items()}
    return answers
