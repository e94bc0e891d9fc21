"""The objective: a weighted sum of named losses, and where each loss finds its tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import InputError

WORDS = ("student", "teacher", "labels", "index")

Tapped = Mapping[str, Tensor]


class Term(nn.Module):
    """A loss with its weight and the layers it looks at.

    Args:
        loss: any module whose ``forward`` names what it needs out of ``student, teacher, labels, index`` and
            returns an unweighted scalar. An optional ``build(student, teacher)`` is called once with example
            tensors and creates whatever depends on shapes.
        weight: factor in the total, at least 0.
        student: where its student tensor comes from: ``""`` the output, ``layer3`` a layer's output,
            ``fc:in`` a layer's input; a list of them gives a list of tensors.
        teacher: the same for the teacher.
        warmup: epochs over which the weight rises linearly; epoch e (from 0) has min((e + 1) / warmup, 1).
        stop: the epoch from which on the term is switched off.

    Raises:
        InputError: a word in ``forward`` outside the four, or a number out of range.
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        student: str | list[str] = "",
        teacher: str | list[str] = "",
        warmup: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__()
        self.needs = _needs(loss)
        if not weight >= 0:
            raise InputError(f"weight must be at least 0, got {weight}")
        if warmup < 0 or (stop is not None and stop < 0):
            raise InputError(f"warmup and stop count epochs from 0, got warmup={warmup}, stop={stop}")
        self.loss = loss
        self.weight = float(weight)
        self.sources = {"student": student, "teacher": teacher}
        self.warmup, self.stop = warmup, stop

    def scale(self, epoch: int) -> float:
        """The weight in force in ``epoch``, counted from 0."""
        if self.stop is not None and epoch >= self.stop:
            return 0.0
        return self.weight * (min((epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0)

    def layers(self, side: str) -> list[str]:
        """The layers it needs tapped in ``side``, ``"student"`` or ``"teacher"``."""
        source = self.sources[side]
        names = [source] if isinstance(source, str) else source
        return [name for name in names if name] if side in self.needs else []

    def pick(self, side: str, tapped: Tapped) -> Tensor | list[Tensor]:
        """The tensors this term looks at, in float32 at least; the teacher's without gradient."""
        source = self.sources[side]
        if isinstance(source, str):
            return _ready(tapped[source], side)
        return [_ready(tapped[name], side) for name in source]

    def build(self, student: Tapped, teacher: Tapped | None) -> None:
        """Lets the loss create what depends on shapes."""
        build = getattr(self.loss, "build", None)
        if build is not None:
            sides = {"student": student, "teacher": teacher}
            given = {
                side: self.pick(side, tapped)
                for side, tapped in sides.items()
                if tapped is not None and side in self.needs
            }
            accepted = inspect.signature(build).parameters
            build(**{side: tensor for side, tensor in given.items() if side in accepted})

    def forward(self, **given: Any) -> Tensor:
        """The unweighted scalar; ``student`` and ``teacher`` are tapped tensors by name."""
        arguments = {word: given[word] for word in self.needs}
        for side in ("student", "teacher"):
            if side in arguments:
                arguments[side] = self.pick(side, arguments[side])
        part = self.loss(**arguments)
        if not isinstance(part, Tensor) or part.ndim:
            shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"{type(self.loss).__name__} must return a scalar, returned {shape}")
        return part


class Objective(nn.Module):
    """The weighted sum of terms by name. Its parts are modules, so they train, move and save."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        if not terms:
            raise InputError("an objective needs at least one term")
        self.terms = nn.ModuleDict(dict(terms))

    def named_terms(self) -> list[tuple[str, Term]]:
        """Its terms in the order given."""
        return [(name, term) for name, term in self.terms.items() if isinstance(term, Term)]

    @property
    def uses_teacher(self) -> bool:
        """Whether any term names ``teacher``; if none does, the teacher never runs."""
        return any("teacher" in term.needs for _, term in self.named_terms())

    def layers(self, side: str) -> list[str]:
        """All layers that must be tapped in ``side``."""
        return sorted({layer for _, term in self.named_terms() for layer in term.layers(side)})

    def build(self, student: Tapped, teacher: Tapped | None) -> None:
        """Lets every loss create what depends on shapes, from one example batch."""
        for _, term in self.named_terms():
            term.build(student, teacher)

    def forward(
        self,
        student: Tapped,
        labels: Tensor,
        teacher: Tapped | None = None,
        index: Tensor | None = None,
        epoch: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and the unweighted parts by name; terms that have stopped are left out."""
        given = {"student": student, "teacher": teacher, "labels": labels, "index": index}
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=labels.device)
        with torch.autocast(labels.device.type, enabled=False):
            for name, term in self.named_terms():
                if term.stop is not None and epoch >= term.stop:
                    continue
                parts[name] = term(**given)
                if scale := term.scale(epoch):
                    total = total + scale * parts[name]
        return total, {name: part.detach() for name, part in parts.items()}

    def describe(self) -> list[str]:
        """The objective in words: the sum with its numbers, then a line for each term."""
        terms = self.named_terms()
        lines = ["total = " + " + ".join(f"{term.weight:g} * {name}" for name, term in terms)]
        for name, term in terms:
            formula = (inspect.getdoc(type(term.loss)) or "").split("\n")[0].rstrip(".")
            where = [f"{side}={term.sources[side]}" for side in ("student", "teacher") if term.layers(side)]
            when = [f"warmup={term.warmup}"] * bool(term.warmup) + [f"stop={term.stop}"] * (term.stop is not None)
            lines.append(f"{name} = {_one_line(term.loss)}: {formula} {' '.join(where + when)}".rstrip(": "))
        return lines


def _needs(loss: nn.Module) -> tuple[str, ...]:
    names = tuple(inspect.signature(loss.forward).parameters)
    if strangers := [name for name in names if name not in WORDS]:
        raise InputError(
            f"{type(loss).__name__}.forward asks for {strangers[0]!r}; a loss may ask for {', '.join(WORDS)}"
        )
    return names


def _ready(tensor: Tensor, side: str) -> Tensor:
    tensor = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return tensor.detach() if side == "teacher" else tensor


def _one_line(loss: nn.Module) -> str:
    return f"{type(loss).__name__}({loss.extra_repr()})"
