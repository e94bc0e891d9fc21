"""What stands for a teacher, an objective or an optimiser in Python, as the object that the distiller works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from kd.distill.objective import Objective, Term
from kd.distill.teacher import Frozen, Teacher
from kd.errors import InputError
from kd.optim import Optim


def teacher_of(teacher: Any) -> Any:
    """A teacher as it is; a network as a frozen teacher.

    Raises:
        InputError: neither of them.
    """
    if teacher is None or isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, nn.Module):
        return Frozen(teacher)
    raise InputError(f"teacher must be a network, kd.Frozen(network) or None, got a {type(teacher).__name__}")


def objective_of(objective: Any) -> Objective:
    """An objective as it is; of a dict of terms or losses, or of one loss, with weight 1 where none is said.

    Raises:
        InputError: anything else.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, nn.Module):
        objective = {"loss" if isinstance(objective, Term) else type(objective).__name__.lower(): objective}
    if isinstance(objective, Mapping) and all(isinstance(each, nn.Module) for each in objective.values()):
        return Objective({name: each if isinstance(each, Term) else Term(each) for name, each in objective.items()})
    example = 'kd.Objective({"ce": kd.Term(CE(), 0.1), "kd": kd.Term(KL(T=4), 0.9)})'
    raise InputError(f"objective must be terms by name, for example {example}, got a {type(objective).__name__}")


def optim_of(optim: Any) -> Optim | None:
    """An optimiser with its schedule as it is; of a function that makes an optimiser, with the default schedule.

    Raises:
        InputError: an optimiser that is made already, or anything else.
    """
    if optim is None or isinstance(optim, Optim):
        return optim
    example = "kd.Optim(functools.partial(torch.optim.SGD, lr=0.1))"
    if isinstance(optim, Optimizer):
        raise InputError(
            f"optim is a {type(optim).__name__} of parameters chosen already, but an objective may have parameters of "
            f"its own: pass a function that makes it, for example {example}"
        )
    if callable(optim):
        return Optim(optim)
    raise InputError(
        f"optim must be a function that makes an optimiser, for example {example}, got a {type(optim).__name__}"
    )


def seed_of(config: Mapping[str, Any]) -> int:
    """The seed of a run, from its configuration or from what its checkpoints keep of it; 0 where it names none."""
    inner = config.get("config")
    return int((inner if isinstance(inner, Mapping) else config).get("seed") or 0)
