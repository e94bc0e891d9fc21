"""DOT, the distillation-oriented trainer: separate momenta for task and distillation, for any objective.

Zhao et al. 2023, "DOT: A Distillation-Oriented Trainer" (arXiv:2307.08286). With a single momentum, the gradient of the
labels comes to dominate that of the teacher; a larger momentum for the latter keeps the student closer to the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.distill.distiller import Distiller
from kd.distill.objective import Objective, Term
from kd.errors import InputError
from kd.optim import DOT


class DOTDistiller(Distiller):
    """A distiller that passes its optimiser :class:`DOT` two gradients: of the terms without and with a teacher.

    Raises:
        InputError: the objective has no terms of one kind; gradient clipping or float16 precision is set.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        kinds: dict[str, dict[str, Term]] = {"task": {}, "distillation": {}}
        for name, term in self.objective.named_terms():
            kinds["distillation" if "teacher" in term.needs else "task"][name] = term
        if absent := [kind for kind, terms in kinds.items() if not terms]:
            raise InputError(f"optim=dot needs task and distillation terms, but the objective has no {absent[0]} term")
        # outside the module tree, which already contains the terms
        self.__dict__["kinds"] = [Objective(terms) for terms in kinds.values()]
        self.sums: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        check_trainer(self.trainer.gradient_clip_val, self.trainer.precision)
        return super().configure_optimizers()

    def total(self, student: Mapping[str, Tensor], batch: Batch, teacher: Any) -> tuple[Tensor, dict[str, Tensor]]:
        arguments = (student, batch.labels, teacher, batch.index, self.current_epoch)
        answers = [objective(*arguments) for objective in self.__dict__["kinds"]]
        self.sums = [total for total, _ in answers]
        return self.sums[0] + self.sums[1], {name: part for _, parts in answers for name, part in parts.items()}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Computes both gradients, averaged over processes; DDP's hooks support only one gradient and are bypassed."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, DOT)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        share = 1 / self.trainer.accumulate_grad_batches
        optimizer.take(parameters, [self._gradients(part * share, parameters) for part in self.sums])
        self.sums = []

    def _gradients(self, part: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        if not part.requires_grad:  # no term of this kind is active in this epoch
            return [None] * len(parameters)
        gradients = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
        reduce = self.trainer.strategy.reduce
        return [gradient if gradient is None else reduce(gradient, reduce_op="mean") for gradient in gradients]


def check_trainer(clip: float | None, precision: Any, compiled: Any = False) -> None:
    """Raises an InputError for what two gradients do not support: clipping, float16 and a compiled student."""
    if clip:
        raise InputError("optim=dot has two gradients and cannot clip them: set trainer.gradient_clip_val=null")
    if str(precision).startswith("16"):
        raise InputError(f"optim=dot does not support trainer.precision={precision}: set 32-true or bf16-mixed")
    if compiled is True:
        raise InputError(
            "optim=dot runs two backward passes, which a compiled student does not support: set speed.compile=teacher"
        )
