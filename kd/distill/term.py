"""A term: a loss with its weight, its epochs and the layers that it uses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.models.stages import is_many, spelled

SLIP = 0.88  # similarity: on_epochs and atach are refused; attached, predictor and on_epoch_end are not
WORDS = ("student", "teacher", "labels", "index")

Tapped = Mapping[str, Tensor]


class Term(nn.Module):
    """A loss with its weight and the layers that it uses.

    Args:
        loss: any module whose ``forward`` has parameters out of ``student, teacher, labels, index`` and returns an
            unweighted scalar. An optional ``build(student, teacher)`` is called once with example tensors to create
            shape-dependent modules; :data:`kd.losses.MEMBERS` lists all optional members.
        weight: factor in the total, at least 0.
        student: source of the student's tensor: ``""`` is the output, ``layer3`` a layer's output, ``fc:in`` a
            layer's input; a list of them, or ``stages``, gives a list of tensors.
        teacher: the same for the teacher.
        warmup: epochs over which the weight rises linearly; the e-th epoch since ``start`` has min(e / warmup, 1).
        start: the first epoch, counted from 0, in which the term is active. A pre-training stage consists of terms
            that stop where the others start.
        stop: the first epoch in which it is no longer active; None for never.

    Raises:
        InputError: ``forward`` has any other parameter, a method's name is nearly that of an optional member, or a
            number is out of range.
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        student: str | list[str] = "",
        teacher: str | list[str] = "",
        warmup: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__()
        self.needs = _needs(loss)
        _check_members(loss)
        if not weight >= 0 or math.isinf(weight):
            raise InputError(f"weight must be {'finite' if weight > 0 else 'at least 0'}, got {weight}")
        for side, source in (("student", student), ("teacher", teacher)):
            if not all(isinstance(name, str) for name in (source if isinstance(source, list) else [source])):
                raise InputError(f"{side} must be the name of a layer or a list of names, got {source!r}")
        if min(warmup, start) < 0 or (stop is not None and stop <= start):
            raise InputError(f"start and warmup must be at least 0, stop above start; got {warmup=}, {start=}, {stop=}")
        self.loss = loss
        self.weight = float(weight)
        self.sources = {"student": student, "teacher": teacher}
        self.warmup, self.start, self.stop = warmup, start, stop
        self.common: int | None = None  # number of stages that are compared; None for all

    def scale(self, epoch: int) -> float:
        """The weight in ``epoch``, counted from 0."""
        if not self.counts(epoch):
            return 0.0
        return self.weight * (min((epoch - self.start + 1) / self.warmup, 1.0) if self.warmup else 1.0)

    def counts(self, epoch: int) -> bool:
        """Whether the term is active in ``epoch``."""
        return self.start <= epoch and (self.stop is None or epoch < self.stop)

    def silence(self, epoch: int) -> str:
        """The option that makes the term inactive in ``epoch``."""
        if self.weight == 0:
            return "weight=0"
        return f"start={self.start}" if epoch < self.start else f"stop={self.stop}"

    def names(self, side: str) -> list[str]:
        """The sources of its tensors of ``side``, ``"student"`` or ``"teacher"``; ``""`` is the output."""
        source = self.sources[side]
        return [source] if isinstance(source, str) else list(source)

    def layers(self, side: str) -> list[str]:
        """The layers to tap in ``side``."""
        return [name for name in self.names(side) if name] if side in self.needs else []

    def pick(self, side: str, tapped: Tapped) -> Tensor | list[Tensor]:
        """The tensors of ``side`` that the term uses, at least float32; the teacher's without gradient."""
        source = self.sources[side]
        if isinstance(source, str) and not is_many(source):
            return _ready(tapped[source], side)
        return [_ready(tapped[key], side) for key in self.keys(side, tapped)]

    def keys(self, side: str, tapped: Tapped) -> list[str]:
        """The keys of its tensors in ``tapped``, with names for several stages expanded."""
        words = self.names(side)
        return [key for word in words for key in spelled(word, tapped)[: self.common if is_many(word) else None]]

    def align(self, student: Tapped, teacher: Tapped) -> None:
        """If both sides use a name for several stages, compares as many as both networks have, from the first.

        The benchmarks also pair the stages of two networks in their order. A loss that supports different numbers of
        layers sets ``any_layers = True``.
        """
        counts = [
            {len(spelled(word, tapped)) for word in [*self.layers(side)] if is_many(word)}
            for side, tapped in (("student", student), ("teacher", teacher))
        ]
        self.common = None
        if all(counts) and counts[0] != counts[1] and not getattr(self.loss, "any_layers", False):
            self.common = min(counts[0] | counts[1])

    def build(self, student: Tapped, teacher: Tapped | None) -> None:
        """Lets the loss create its shape-dependent modules."""
        if teacher is not None:
            self.align(student, teacher)
        build = getattr(self.loss, "build", None)
        if build is not None:
            sides = {"student": student, "teacher": teacher}
            inputs = {
                side: self.pick(side, tapped)
                for side, tapped in sides.items()
                if tapped is not None and side in self.needs
            }
            accepted = inspect.signature(build).parameters
            build(**{side: tensor for side, tensor in inputs.items() if side in accepted})

    def forward(self, **inputs: Any) -> Tensor:
        """The unweighted scalar; ``student`` and ``teacher`` are tapped tensors by name."""
        arguments = {word: inputs[word] for word in self.needs}
        for side in ("student", "teacher"):
            if side in arguments:
                arguments[side] = self.pick(side, arguments[side])
        part = self.loss(**arguments)
        if not isinstance(part, Tensor) or part.ndim:
            shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"{type(self.loss).__name__} must return a scalar, returned {shape}")
        return part


@contextmanager
def explained(term: Term, student: Tapped, teacher: Tapped | None) -> Iterator[None]:
    """Adds the loss, and the layers and shapes of its inputs (B for the batch), to torch's error message."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        described = []
        for side, tapped in (("student", student), ("teacher", teacher)):
            for layer in term.keys(side, tapped) if tapped and side in term.needs else ():
                shape = ", ".join(["B", *map(str, (tapped or {})[layer].shape[1:])])
                described.append(f"{side}={layer or 'output'} [{shape}]")
        line = str(error).strip().partition("\n")[0]
        inputs = " and ".join(described) or "the labels"
        raise InputError(f"{type(term.loss).__name__} fails on {inputs}: {line}") from error


def _needs(loss: nn.Module) -> tuple[str, ...]:
    if not isinstance(loss, nn.Module):
        raise InputError(f"a loss must be an nn.Module, got a {type(loss).__name__}")
    names = tuple(inspect.signature(loss.forward).parameters)
    if strangers := [name for name in names if name not in WORDS]:
        raise InputError(
            f"{type(loss).__name__}.forward has a parameter {strangers[0]!r}; allowed are {', '.join(WORDS)}"
        )
    return names


def _check_members(loss: nn.Module) -> None:
    """Raises an InputError for a public method that is probably a misspelled optional member."""
    from kd.losses import MEMBERS  # imports this file, as losses are registered as terms

    for name in dir(type(loss)):
        if name.startswith("_") or hasattr(nn.Module, name) or not callable(getattr(type(loss), name, None)):
            continue
        near = get_close_matches(name.lower(), MEMBERS, n=1, cutoff=SLIP)
        if near and not hasattr(loss, near[0]):
            raise InputError(f"{type(loss).__name__}.{name} is never called; did you mean {near[0]!r}?")


def _ready(tensor: Tensor, side: str) -> Tensor:
    tensor = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return tensor.detach() if side == "teacher" else tensor
