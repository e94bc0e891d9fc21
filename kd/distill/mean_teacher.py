"""Teachers that change with the student, and the mean teacher: the moving average of the student's own weights."""

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

    Tarvainen and Valpola 2017, "Mean teachers are better role models" (arXiv:1703.01780), in the schedule of the
    authors' code, by which the first steps count alike. The buffers are averaged as well, and counts are copied.

    Args:
        student: of which it begins as a copy.
        decay: d in the long run.

    Raises:
        InputError: a decay outside [0, 1).
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
        """Names the layers whose tensors it gives besides its output, in place of those named before."""
        if "taps" in self.__dict__:
            self.taps.remove()
        self.taps = Taps(self.network, layers)

    def train(self, mode: bool = True) -> MeanTeacher:
        """Leaves it in eval mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": logits [B, C], layer: tensor, ...}`` for a batch, without gradient."""
        return self.taps(batch.images)

    def follow(self, student: nn.Module, step: int) -> None:
        """Moves towards the student after its ``step``-th step, counted from 1."""
        follow(self.network, student, min(1 - 1 / (step + 1), self.decay))


class MeanTeacherDistiller(Distiller):
    """A distiller whose teacher is a :class:`MeanTeacher` one.

    Raises:
        InputError: a term that copies layers of its teacher once, when there is nothing in them yet.
    """

    teacher: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, term in self.objective.named_terms():
            if hasattr(term.loss, "attach"):
                why = "copies layers of the teacher before the first step, when a moving average has learned nothing"
                raise InputError(f"objective.{name} {why}; teacher=ema takes other objectives")
        self.teacher_sha256 = None  # its state is the checkpoint's own

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        self.teacher.follow(self.student, self.trainer.global_step + 1)  # the step is counted after this hook

    def answer(self, part: str, batch: Batch, batch_idx: int) -> Tensor | None:
        """The teacher's logits, which are others at each validation."""
        return self.teacher(batch)[""]


@torch.no_grad()
def follow(average: nn.Module, source: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * source for parameters and buffers, in place; counts are copied."""
    for old, new in zip(average.state_dict().values(), source.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def check_decay(decay: float) -> None:
    """Refuses a decay outside [0, 1) by an InputError."""
    if not 0 <= decay < 1:
        raise InputError(f"decay must lie in [0, 1), got {decay}")
