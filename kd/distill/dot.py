"""DOT, the distillation-oriented trainer: task and distillation have momenta of their own, for any objective.

Zhao et al. 2023, "DOT: A Distillation-Oriented Trainer" (arXiv:2307.08286). Under one momentum the gradient of the
labels comes to lead that of the teacher; a larger momentum for the latter keeps the student nearer to the teacher.
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
    """A distiller whose optimiser :class:`DOT` gets two gradients: of the terms that need no teacher, and of the rest.

    Raises:
        InputError: an objective in which one of the two is missing; clipped gradients, or those that float16 scales.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        kinds: dict[str, dict[str, Term]] = {"task": {}, "distillation": {}}
        for name, term in self.objective.named_terms():
            kinds["distillation" if "teacher" in term.needs else "task"][name] = term
        if absent := [kind for kind, terms in kinds.items() if not terms]:
            raise InputError(f"optim=dot sets task and distillation apart, but no term is of the {absent[0]}")
        # beside the module tree, as the terms are in it already
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
        """Both gradients, averaged over processes; DDP's own hooks know of one gradient only and are left out."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, DOT)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        share = 1 / self.trainer.accumulate_grad_batches
        optimizer.take(parameters, [self._gradients(part * share, parameters) for part in self.sums])
        self.sums = []

    def _gradients(self, part: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        if not part.requires_grad:  # no term of this kind counts in this epoch
            return [None] * len(parameters)
        gradients = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
        reduce = self.trainer.strategy.reduce
        return [gradient if gradient is None else reduce(gradient, reduce_op="mean") for gradient in gradients]


def check_trainer(clip: float | None, precision: Any, compiled: Any = False) -> None:
    """Refuses by an InputError what two gradients cannot have: a clipped norm, float16's scale, a compiled student."""
    if clip:
        raise InputError("optim=dot keeps two gradients and cannot clip them: set trainer.gradient_clip_val=null")
    if str(precision).startswith("16"):
        raise InputError(f"optim=dot cannot scale its gradients for trainer.precision={precision}")
    if compiled is True:
        raise InputError(
            "optim=dot goes back through the student twice, which a compiled one cannot: speed.compile=teacher"
        )
