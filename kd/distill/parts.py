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


def teacher_of(given: Any) -> Any:
    """A teacher as it is; a network as a frozen teacher.

    Raises:
        InputError: neither of them.
    """
    if given is None or isinstance(given, Teacher):
        return given
    if isinstance(given, nn.Module):
        return Frozen(given)
    raise InputError(f"teacher must be a network, kd.Frozen(network) or None, got a {type(given).__name__}")


def objective_of(given: Any) -> Objective:
    """An objective as it is; of a dict of terms or losses, or of one loss, with weight 1 where none is said.

    Raises:
        InputError: anything else.
    """
    if isinstance(given, Objective):
        return given
    if isinstance(given, nn.Module):
        given = {"loss" if isinstance(given, Term) else type(given).__name__.lower(): given}
    if isinstance(given, Mapping) and all(isinstance(each, nn.Module) for each in given.values()):
        return Objective({name: each if isinstance(each, Term) else Term(each) for name, each in given.items()})
    example = 'kd.Objective({"ce": kd.Term(CE(), 0.1), "kd": kd.Term(KL(T=4), 0.9)})'
    raise InputError(f"objective must be terms by name, {example} for example, got a {type(given).__name__}")


def optim_of(given: Any) -> Optim | None:
    """An optimiser with its schedule as it is; of a function that makes an optimiser, with the default schedule.

    Raises:
        InputError: an optimiser that is made already, or anything else.
    """
    if given is None or isinstance(given, Optim):
        return given
    example = "kd.Optim(functools.partial(torch.optim.SGD, lr=0.1))"
    if isinstance(given, Optimizer):
        raise InputError(
            f"optim is a {type(given).__name__} of parameters chosen already, but an objective may have parameters of "
            f"its own: say how it is made, {example} for example"
        )
    if callable(given):
        return Optim(given)
    raise InputError(f"optim must say how an optimiser is made, {example} for example, got a {type(given).__name__}")


def seed_of(config: Mapping[str, Any]) -> int:
    """The seed of a run, from its configuration or from what its checkpoints keep of it; 0 where it names none."""
    inner = config.get("config")
    return int((inner if isinstance(inner, Mapping) else config).get("seed") or 0)
