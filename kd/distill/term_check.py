"""Each term is tried before a run: whether its loss takes the tensors that it is given, and teaches anything."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from kd.distill.objective import Objective
from kd.distill.term import Tapped, Term, explained
from kd.errors import InputError, located

log = logging.getLogger(__name__)

MOST = 2**24  # numbers that a loss may hold, such as a memory bank, to be copied for a trial
SAMPLES, DRAWS = 8, 3  # of random logits
SMALL = 2e-5  # the gradient's norm times the logits'; at least 0.1 where a loss teaches, 1e-6 where rounding is left


@torch.random.fork_rng(devices=[])
def check_terms(objective: Objective, student: Tapped, teacher: Tapped | None) -> None:
    """Tries every term that ever counts on example tensors of both sides, by name.

    Terms on logits [B, C] are tried on random ones too, and a warning names those whose gradient vanishes: over two
    classes nothing is left of logits that are standardised, over one class nothing of any loss on probabilities.

    Raises:
        InputError: a loss that fails on these tensors, whose value depends neither on the student nor on parameters of
            its own, or an objective of nothing but vanishing terms; the term is named.
    """
    counting = [(name, term) for name, term in objective.named_terms() if term.weight]
    vanishing = {name: classes for name, term in counting if (classes := _tried(name, term, student, teacher))}
    if len(vanishing) == len(counting):
        classes = next(iter(vanishing.values()))
        raise InputError(
            f"objective.{next(iter(vanishing))} has no gradient on {classes} classes, so nothing is learned"
        )
    for name, classes in vanishing.items():
        log.warning("objective.%s teaches nothing: its gradient vanishes on %d classes", name, classes)


def _tried(name: str, term: Term, student: Tapped, teacher: Tapped | None) -> int | None:
    """The count of classes on which a term's gradient vanishes, if it does."""
    if sum(tensor.numel() for tensor in term.state_dict().values() if isinstance(tensor, Tensor)) > MOST:
        return None
    try:
        trial = copy.deepcopy(term)
    except (RuntimeError, TypeError):
        return None  # a loss that cannot be copied would be changed by a trial
    sides = {"student": student, "teacher": teacher}
    with torch.enable_grad():
        with located(f"objective.{name}"), explained(term, student, teacher):
            leaves = {side: _leaves(tapped) for side, tapped in sides.items() if tapped is not None}
            part = _value(trial, leaves, len(student[""]))
        if not part.requires_grad:
            who = type(term.loss).__name__
            raise InputError(f"objective.{name}: the value of {who} depends neither on the student nor on parameters")
        return _classes_in_vain(trial, sides)


def _value(term: Term, sides: Mapping[str, Tapped], samples: int) -> Tensor:
    labels = torch.arange(samples) % sides["student"][""].shape[-1]
    words = {"labels": labels, "index": torch.arange(samples), "teacher": None}
    return term(**{**words, **sides})


def _leaves(tapped: Tapped) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for name, tensor in tapped.items()}


def _classes_in_vain(term: Term, sides: Mapping[str, Tapped | None]) -> int | None:
    """How many classes the logits of a term have, if it has no gradient on any of some random ones."""
    if "student" not in term.needs or any(term.layers(side) for side in sides) or "index" in term.needs:
        return None
    student = sides["student"]
    assert student is not None
    if not isinstance(term.sources["student"], str):
        return None
    classes, generator = student[""].shape[-1], torch.Generator().manual_seed(0)
    term = term.double()
    for _ in range(DRAWS):
        drawn = {
            side: {"": torch.randn(SAMPLES, classes, generator=generator, dtype=torch.float64)}
            for side, tapped in sides.items()
            if tapped is not None
        }
        logits = drawn["student"][""].requires_grad_()
        part = _value(term, drawn, SAMPLES)
        (gradient,) = torch.autograd.grad(part, logits, allow_unused=True)
        if gradient is not None and float(gradient.norm() * logits.detach().norm()) > SMALL:
            return None
    return classes
