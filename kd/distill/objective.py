"""The objective: a weighted sum of named losses."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd.distill.term import WORDS as WORDS
from kd.distill.term import Tapped, Term, explained
from kd.errors import InputError, located

log = logging.getLogger(__name__)


class Objective(nn.Module):
    """The weighted sum of terms by name; the terms are submodules, so their parameters are trained, moved and saved."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        if not terms:
            raise InputError("an objective needs at least one term")
        self.terms = nn.ModuleDict(dict(terms))

    def named_terms(self) -> list[tuple[str, Term]]:
        """The terms by name, in the order of the constructor."""
        return [(name, term) for name, term in self.terms.items() if isinstance(term, Term)]

    @property
    def uses_teacher(self) -> bool:
        """Whether any term needs the teacher; if not, the teacher never runs."""
        return any("teacher" in term.needs for _, term in self.named_terms())

    def asks_teacher(self, epoch: int) -> bool:
        """Whether a term that needs the teacher has a weight above 0 in this epoch; else the teacher need not run."""
        return any("teacher" in term.needs and term.scale(epoch) > 0 for _, term in self.named_terms())

    def check_epochs(self, epochs: int | None) -> None:
        """Checks that each of ``epochs`` epochs (None or -1: unlimited) has a term with a weight above 0.

        Raises:
            InputError: an epoch has none; the message names it, and why each term is inactive.
        """
        terms = self.named_terms()
        turns = {0, *(turn for _, term in terms for turn in (term.start, term.stop) if turn is not None)}
        last = math.inf if epochs in (None, -1) else epochs
        for epoch in sorted(turn for turn in turns if turn < last):
            if not any(term.scale(epoch) for _, term in terms):
                why = ", ".join(f"objective.{name} ({term.silence(epoch)})" for name, term in terms)
                raise InputError(f"no term of the objective is active in epoch {epoch} (counted from 0): {why}")

    def layers(self, side: str) -> list[str]:
        """All layers to tap in ``side``."""
        return sorted({layer for _, term in self.named_terms() for layer in term.layers(side)})

    def init_epochs(self) -> int:
        """The number of pre-training epochs: those before the terms with labels, if another ends there; else 0."""
        terms = [term for _, term in self.named_terms()]
        first = min((term.start for term in terms if "labels" in term.needs), default=0)
        ends = {end for term in terms for end in (term.stop, getattr(term.loss, "init_epochs", None))}
        return first if first in ends else 0

    def init_rate(self) -> float:
        """The learning rate of pre-training as a share of the run's: the lowest ``init_rate`` of a loss."""
        return min(float(getattr(term.loss, "init_rate", 1.0)) for _, term in self.named_terms())

    def build(self, student: Tapped, teacher: Tapped | None) -> None:
        """Lets every loss create its shape-dependent modules from one example batch."""
        for name, term in self.named_terms():
            with located(f"objective.{name}"), explained(term, student, teacher):
                term.build(student, teacher)
            if term.common is not None:
                log.info(
                    "objective.%s: one network has more stages; the first %d of each are compared", name, term.common
                )

    def check_labels(self, unlabelled: bool, mixed: bool) -> None:
        """Checks that every term that needs labels supports those of the data.

        Args:
            unlabelled: whether some labels are unknown.
            mixed: whether labels are mixed, by mixup or cutmix.

        Raises:
            InputError: a term does not support them; the message names it.
        """
        for name, term in self.named_terms():
            who = f"objective.{name}: {type(term.loss).__name__}"
            if unlabelled and "labels" in term.needs and not getattr(term.loss, "takes_unlabelled", False):
                raise InputError(f"{who} needs a label for every sample, but some samples have none")
            if mixed and "labels" in term.needs and not getattr(term.loss, "takes_mixed", False):
                raise InputError(f"{who} needs class numbers as labels, but data.mixup or data.cutmix mixes labels")

    def attach(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Passes the networks themselves, without normalisation, to the losses; called once, before ``build``."""
        self._call("attach", student, teacher)

    def attach_data(self, samples: int, labels: Tensor) -> None:
        """Passes the training set's size and labels [N] to the losses; called once, before ``build``."""
        self._call("attach_data", samples, labels)

    def on_epoch(self, epoch: int) -> None:
        """Called at the start of every epoch, counted from 0."""
        self._call("on_epoch", epoch)

    def _call(self, member: str, *arguments: Any) -> None:
        """Calls a method of every loss that has it; see :data:`kd.losses.MEMBERS`."""
        for name, term in self.named_terms():
            method = getattr(term.loss, member, None)
            if method is not None:
                with located(f"objective.{name}"):
                    method(*arguments)

    @property
    def predictor(self) -> Term | None:
        """The term whose loss has a method ``predict(student)``, which computes the prediction (SimKD); else None."""
        return next((term for _, term in self.named_terms() if hasattr(term.loss, "predict")), None)

    def predict(self, student: Tapped) -> Tensor:
        """The student's logits [B, C]: its output, unless there is a predictor."""
        if (term := self.predictor) is None:
            return student[""]
        return term.loss.predict(term.pick("student", student))  # type: ignore[operator]

    def logged(self) -> dict[str, Tensor]:
        """Additional values logged by losses, as ``term/name``, for example a learned temperature."""
        methods = [(name, getattr(term.loss, "logged", None)) for name, term in self.named_terms()]
        return {f"{name}/{key}": value for name, logged in methods if logged for key, value in logged().items()}

    def forward(
        self,
        student: Tapped,
        labels: Tensor,
        teacher: Tapped | None = None,
        index: Tensor | None = None,
        epoch: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and the unweighted parts by name, of the terms that are active in this epoch.

        ``teacher`` may be None if :meth:`asks_teacher` is False; terms of weight 0 that need it are then omitted.
        """
        inputs = {"student": student, "teacher": teacher, "labels": labels, "index": index}
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=labels.device)
        with torch.autocast(labels.device.type, enabled=False):
            for name, term in self.named_terms():
                if not term.counts(epoch) or (teacher is None and "teacher" in term.needs and not term.scale(epoch)):
                    continue
                parts[name] = term(**inputs)
                if scale := term.scale(epoch):
                    total = total + scale * parts[name]
        return total, {name: part.detach() for name, part in parts.items()}

    def describe(self) -> list[str]:
        """A summary in lines: the weighted sum, then one line per term."""
        terms = self.named_terms()
        lines = ["total = " + " + ".join(f"{term.weight:g} * {name}" for name, term in terms)]
        for name, term in terms:
            formula = (inspect.getdoc(type(term.loss)) or "").split("\n")[0].rstrip(".")
            where = [f"{side}={term.sources[side]}" for side in ("student", "teacher") if term.layers(side)]
            plan = {"warmup": term.warmup, "start": term.start, "stop": term.stop}
            when = [f"{key}={value}" for key, value in plan.items() if value]
            lines.append(f"{name} = {_one_line(term.loss)}: {formula} {' '.join(where + when)}".rstrip(": "))
        return lines


def _one_line(loss: nn.Module) -> str:
    return f"{type(loss).__name__}({loss.extra_repr()})"
