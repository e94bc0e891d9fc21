"""Converts the teachers, objectives and optimisers accepted by the Python API to the distiller's types."""

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
    """A teacher or None unchanged; a network as a frozen teacher.

    Raises:
        InputError: ``teacher`` is anything else.
    """
    if teacher is None or isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, nn.Module):
        return Frozen(teacher)
    raise InputError(f"teacher must be a network, kd.Frozen(network) or None, got a {type(teacher).__name__}")


def objective_of(objective: Any) -> Objective:
    """An objective unchanged; a dict of terms or losses, or one of either, as an objective. Losses have weight 1.

    Raises:
        InputError: ``objective`` is anything else.
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
    """An optimiser with its schedule unchanged; a function that creates an optimiser, with the default schedule.

    Raises:
        InputError: ``optim`` is an existing optimiser, or anything else.
    """
    if optim is None or isinstance(optim, Optim):
        return optim
    example = "kd.Optim(functools.partial(torch.optim.SGD, lr=0.1))"
    if isinstance(optim, Optimizer):
        raise InputError(
            f"optim is a {type(optim).__name__} with fixed parameters, but an objective may add parameters: pass a "
            f"function that creates it, for example {example}"
        )
    if callable(optim):
        return Optim(optim)
    raise InputError(
        f"optim must be a function that creates an optimiser, for example {example}, got a {type(optim).__name__}"
    )


def seed_of(config: Mapping[str, Any]) -> int:
    """The seed of a run, from its configuration or from its checkpoints' hyperparameters; 0 if there is none."""
    inner = config.get("config")
    return int((inner if isinstance(inner, Mapping) else config).get("seed") or 0)
