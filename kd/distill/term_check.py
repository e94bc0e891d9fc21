"""Checks each term before a run: its loss must accept its tensors and have a gradient."""

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

MOST = 2**24  # numbers in a loss, such as a memory bank; a larger loss is not copied and checked
SAMPLES, DRAWS = 8, 3  # of random logits
SMALL = 2e-5  # gradient norm times logit norm: at least 0.1 with a gradient, 1e-6 with rounding only


@torch.random.fork_rng(devices=[])
def check_terms(objective: Objective, student: Tapped, teacher: Tapped | None) -> None:
    """Runs every term with a weight on example tensors of both sides, by name.

    Terms on logits [B, C] also run on random logits, and a warning names those whose gradient vanishes: with two
    classes, standardised logits have no gradient; with one class, probabilities have none.

    Raises:
        InputError: a loss fails on these tensors, its value depends neither on the student nor on its own parameters,
            or the gradients of all terms vanish; the message names the term.
    """
    counting = [(name, term) for name, term in objective.named_terms() if term.weight]
    vanishing = {name: classes for name, term in counting if (classes := _tried(name, term, student, teacher))}
    if len(vanishing) == len(counting):
        classes = next(iter(vanishing.values()))
        raise InputError(
            f"objective.{next(iter(vanishing))} has no gradient for {classes} classes, so nothing is learned"
        )
    for name, classes in vanishing.items():
        log.warning("objective.%s has no effect: its gradient vanishes for %d classes", name, classes)


def _tried(name: str, term: Term, student: Tapped, teacher: Tapped | None) -> int | None:
    """The number of classes if a term's gradient vanishes for them, else None."""
    if sum(tensor.numel() for tensor in term.state_dict().values() if isinstance(tensor, Tensor)) > MOST:
        return None
    try:
        trial = copy.deepcopy(term)
    except (RuntimeError, TypeError):
        return None  # a check would change the loss itself
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
    """The number of classes if a term has no gradient for any of several random logits, else None."""
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
