"""The mean teacher: an exponential moving average of the student's weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.distill.distiller import Distiller
from kd.distill.taps import Taps
from kd.distill.teacher import OnlineTeacher
from kd.errors import InputError
from kd.models.check import copied


class MeanTeacher(OnlineTeacher):
    """average = d * average + (1 - d) * student after the n-th step, d = min(1 - 1 / (n + 1), decay), n from 1.

    Tarvainen and Valpola 2017, "Mean teachers are better role models" (arXiv:1703.01780), with the schedule of the
    authors' code, in which the first steps have equal weights. Buffers are averaged as well; integer ones are copied.

    Args:
        student: the average starts as a copy of it.
        decay: the limit of d.

    Raises:
        InputError: ``decay`` is outside [0, 1).
    """

    taps: Taps

    def __init__(self, student: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        check_decay(decay)
        self.network, self.decay = copied(student).requires_grad_(False), decay
        self.tap(())
        self.eval()

    def networks(self) -> dict[str, nn.Module]:
        return {"": self.network}

    def tap(self, layers: Iterable[str]) -> None:
        """Sets the layers to tap besides the output, replacing any set before."""
        if "taps" in self.__dict__:
            self.taps.remove()
        self.taps = Taps(self.network, layers)

    def train(self, mode: bool = True) -> MeanTeacher:
        """Stays in eval mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": logits [B, C], layer: tensor, ...}`` for a batch, without gradient."""
        return self.taps(batch.images)

    def follow(self, student: nn.Module, step: int) -> None:
        """Updates the average after the student's ``step``-th step, counted from 1."""
        follow(self.network, student, min(1 - 1 / (step + 1), self.decay))


class MeanTeacherDistiller(Distiller):
    """A distiller whose teacher is a :class:`MeanTeacher`.

    Raises:
        InputError: a term copies layers of the teacher before training, when they are untrained.
    """

    teacher: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, term in self.objective.named_terms():
            if hasattr(term.loss, "attach"):
                why = "copies layers of the teacher before the first step, when a moving average is untrained"
                raise InputError(f"objective.{name} {why}; choose another objective for teacher=ema")
        self.teacher_sha256 = None  # the checkpoint itself contains the teacher's weights

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        self.teacher.follow(self.student, self.trainer.global_step + 1)  # global_step is incremented after this hook

    def answer(self, part: str, batch: Batch, batch_idx: int) -> Tensor | None:
        """The teacher's logits, computed at each validation, as its weights change."""
        return self.teacher(batch)[""]


@torch.no_grad()
def follow(average: nn.Module, source: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * source for parameters and buffers, in place; integers are copied."""
    for old, new in zip(average.state_dict().values(), source.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def check_decay(decay: float) -> None:
    """Raises an InputError for a decay outside [0, 1)."""
    if not 0 <= decay < 1:
        raise InputError(f"decay must lie in [0, 1), got {decay}")
