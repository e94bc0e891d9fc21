"""The objective: a weighted sum of named losses, and where each loss finds its tensors."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import InputError, placed
from kd.models.stages import is_many, spelled

log = logging.getLogger(__name__)

WORDS = ("student", "teacher", "labels", "index")

Tapped = Mapping[str, Tensor]


class Term(nn.Module):
    """A loss with its weight and the layers it looks at.

    Args:
        loss: any module whose ``forward`` names what it needs out of ``student, teacher, labels, index`` and
            returns an unweighted scalar. An optional ``build(student, teacher)`` is called once with example
            tensors and creates whatever depends on shapes; further optional hooks are told of by ``Objective.tell``.
            One that names ``labels`` says by ``takes_unlabelled = True`` that some may be unknown, by
            ``takes_mixed = True`` that they may be probabilities [B, C].
        weight: factor in the total, at least 0.
        student: where its student tensor comes from: ``""`` the output, ``layer3`` a layer's output,
            ``fc:in`` a layer's input; a list of them, or ``stages``, gives a list of tensors.
        teacher: the same for the teacher.
        warmup: epochs over which the weight rises linearly; the e-th epoch since ``start`` has min(e / warmup, 1).
        start: the epoch, counted from 0, from which on the term counts. A stage of pre-training is made of terms
            that stop where the others start.
        stop: the epoch from which on it no longer counts.

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
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__()
        self.needs = _needs(loss)
        if not weight >= 0 or math.isinf(weight):
            raise InputError(f"weight must be {'finite' if weight > 0 else 'at least 0'}, got {weight}")
        for side, source in (("student", student), ("teacher", teacher)):
            if not all(isinstance(name, str) for name in (source if isinstance(source, list) else [source])):
                raise InputError(f"{side} must be the name of a layer or a list of names, got {source!r}")
        if min(warmup, start) < 0 or (stop is not None and stop <= start):
            raise InputError(f"epochs count from 0, stop comes after start; got {warmup=}, {start=}, {stop=}")
        self.loss = loss
        self.weight = float(weight)
        self.sources = {"student": student, "teacher": teacher}
        self.warmup, self.start, self.stop = warmup, start, stop
        self.common: int | None = None  # of several stages, how many are compared; None for all

    def scale(self, epoch: int) -> float:
        """The weight in force in ``epoch``, counted from 0."""
        if not self.counts(epoch):
            return 0.0
        return self.weight * (min((epoch - self.start + 1) / self.warmup, 1.0) if self.warmup else 1.0)

    def counts(self, epoch: int) -> bool:
        """Whether the term is part of the objective in ``epoch``."""
        return self.start <= epoch and (self.stop is None or epoch < self.stop)

    def silence(self, epoch: int) -> str:
        """The option by which it does not count in ``epoch``."""
        if self.weight == 0:
            return "weight=0"
        return f"start={self.start}" if epoch < self.start else f"stop={self.stop}"

    def names(self, side: str) -> list[str]:
        """Where its tensors of ``side``, ``"student"`` or ``"teacher"``, come from; ``""`` is the output."""
        source = self.sources[side]
        return [source] if isinstance(source, str) else list(source)

    def layers(self, side: str) -> list[str]:
        """The layers it needs tapped in ``side``."""
        return [name for name in self.names(side) if name] if side in self.needs else []

    def pick(self, side: str, tapped: Tapped) -> Tensor | list[Tensor]:
        """The tensors this term looks at, in float32 at least; the teacher's without gradient."""
        source = self.sources[side]
        if isinstance(source, str) and not is_many(source):
            return _ready(tapped[source], side)
        words = [source] if isinstance(source, str) else source
        names = [name for word in words for name in spelled(word, tapped)[: self.common if is_many(word) else None]]
        return [_ready(tapped[name], side) for name in names]

    def align(self, student: Tapped, teacher: Tapped) -> None:
        """Where words for several stages stand on both sides, compares as many as both networks have, from the first.

        So do the benchmarks, which pair the stages of two networks in their order. A loss that takes any number of
        layers on either side says so by ``any_layers = True``.
        """
        counts = [
            {len(spelled(word, tapped)) for word in [*self.layers(side)] if is_many(word)}
            for side, tapped in (("student", student), ("teacher", teacher))
        ]
        self.common = None
        if all(counts) and counts[0] != counts[1] and not getattr(self.loss, "any_layers", False):
            self.common = min(counts[0] | counts[1])

    def build(self, student: Tapped, teacher: Tapped | None) -> None:
        """Lets the loss create what depends on shapes."""
        if teacher is not None:
            self.align(student, teacher)
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

    def asks_teacher(self, epoch: int) -> bool:
        """Whether a term that names ``teacher`` has a weight above 0 in this epoch; else the teacher need not run."""
        return any("teacher" in term.needs and term.scale(epoch) > 0 for _, term in self.named_terms())

    def check_epochs(self, epochs: int | None) -> None:
        """Whether each of so many epochs (None or -1: without end) has a term with a weight above 0.

        Raises:
            InputError: an epoch has none; it is named, and why each term does not count.
        """
        terms = self.named_terms()
        turns = {0, *(turn for _, term in terms for turn in (term.start, term.stop) if turn is not None)}
        last = math.inf if epochs in (None, -1) else epochs
        for epoch in sorted(turn for turn in turns if turn < last):
            if not any(term.scale(epoch) for _, term in terms):
                why = ", ".join(f"objective.{name} ({term.silence(epoch)})" for name, term in terms)
                raise InputError(f"no term of the objective counts in epoch {epoch}, counted from 0: {why}")

    def layers(self, side: str) -> list[str]:
        """All layers that must be tapped in ``side``."""
        return sorted({layer for _, term in self.named_terms() for layer in term.layers(side)})

    def init_epochs(self) -> int:
        """The epochs of a stage of pre-training: those before any term with labels, where another ends; else 0."""
        terms = [term for _, term in self.named_terms()]
        first = min((term.start for term in terms if "labels" in term.needs), default=0)
        ends = {end for term in terms for end in (term.stop, getattr(term.loss, "init_epochs", None))}
        return first if first in ends else 0

    def init_rate(self) -> float:
        """The learning rate of pre-training as a share of the run's: the least that a loss asks for."""
        return min(float(getattr(term.loss, "init_rate", 1.0)) for _, term in self.named_terms())

    def build(self, student: Tapped, teacher: Tapped | None) -> None:
        """Lets every loss create what depends on shapes, from one example batch."""
        for name, term in self.named_terms():
            with placed(f"objective.{name}"), explained(term, student, teacher):
                term.build(student, teacher)
            if term.common is not None:
                log.info(
                    "objective.%s: one network has more stages; the first %d of each are compared", name, term.common
                )

    def check_labels(self, unlabelled: bool, mixed: bool) -> None:
        """Asks every term that names ``labels`` whether it can do with unknown labels, and with mixed ones.

        Raises:
            InputError: a term cannot; it is named.
        """
        for name, term in self.named_terms():
            who = f"objective.{name}: {type(term.loss).__name__}"
            if unlabelled and "labels" in term.needs and not getattr(term.loss, "takes_unlabelled", False):
                raise InputError(f"{who} needs the label of every sample, but some of the data have none")
            if mixed and "labels" in term.needs and not getattr(term.loss, "takes_mixed", False):
                raise InputError(f"{who} needs class numbers as labels, but data.mixup or data.cutmix mixes them")

    def tell(self, hook: str, *facts: Any) -> None:
        """Calls an optional hook of every loss that has it.

        ``attach(student, teacher)`` gives the bare networks, ``attach_data(samples, labels)`` the training set's size
        and labels [N], both once and before ``build``; ``on_epoch(epoch)`` the epoch from 0, before each.
        """
        for name, term in self.named_terms():
            method = getattr(term.loss, hook, None)
            if method is not None:
                with placed(f"objective.{name}"):
                    method(*facts)

    @property
    def predictor(self) -> Term | None:
        """The term whose loss answers for the student, by a method ``predict(student)`` (SimKD), if there is one."""
        return next((term for _, term in self.named_terms() if hasattr(term.loss, "predict")), None)

    def predict(self, student: Tapped) -> Tensor:
        """The student's logits [B, C]: its output, unless there is a predictor."""
        if (term := self.predictor) is None:
            return student[""]
        return term.loss.predict(term.pick("student", student))  # type: ignore[operator]

    def logged(self) -> dict[str, Tensor]:
        """What losses wish to have logged beside their value, as ``term/name``: a learned temperature, say."""
        known = [(name, getattr(term.loss, "logged", None)) for name, term in self.named_terms()]
        return {f"{name}/{key}": value for name, ask in known if ask is not None for key, value in ask().items()}

    def forward(
        self,
        student: Tapped,
        labels: Tensor,
        teacher: Tapped | None = None,
        index: Tensor | None = None,
        epoch: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and the unweighted parts by name, of the terms that count in this epoch.

        ``teacher`` may be None where :meth:`asks_teacher` is False; terms of weight 0 that name it have no part then.
        """
        given = {"student": student, "teacher": teacher, "labels": labels, "index": index}
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=labels.device)
        with torch.autocast(labels.device.type, enabled=False):
            for name, term in self.named_terms():
                if not term.counts(epoch) or (teacher is None and "teacher" in term.needs and not term.scale(epoch)):
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
            plan = {"warmup": term.warmup, "start": term.start, "stop": term.stop}
            when = [f"{key}={value}" for key, value in plan.items() if value]
            lines.append(f"{name} = {_one_line(term.loss)}: {formula} {' '.join(where + when)}".rstrip(": "))
        return lines


@contextmanager
def explained(term: Term, student: Tapped, teacher: Tapped | None) -> Iterator[None]:
    """Puts the loss, and layers and shapes of what it was given (B for the batch), before torch's own complaint."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        known = []
        for side, tapped in (("student", student), ("teacher", teacher)):
            for layer in term.names(side) if tapped and side in term.needs else ():
                shape = ", ".join(["B", *map(str, (tapped or {})[layer].shape[1:])])
                known.append(f"{side}={layer or 'its output'} [{shape}]")
        line = str(error).strip().partition("\n")[0]
        given = " and ".join(known) or "the labels"
        raise InputError(f"{type(term.loss).__name__} fails on {given}: {line}") from error


def _needs(loss: nn.Module) -> tuple[str, ...]:
    if not isinstance(loss, nn.Module):
        raise InputError(f"a loss is an nn.Module, not a {type(loss).__name__}")
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
