"""Frozen teachers: each answers ``teacher(batch)`` and is otherwise out of everybody's sight."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.data.per_device import PerDevice
from kd.distill.taps import Taps
from kd.errors import InputError
from kd.models.normalized import unwrap
from kd.models.weights import fingerprint


class Teacher(nn.Module, ABC):
    """What every teacher has: the networks that it asks, and what a run tells it and asks of it."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks that it asks, by name; a single one has the name ``""``."""

    def fingerprint(self) -> str:
        """sha256 of its state."""
        return fingerprints(self.networks())

    def on_epoch_end(self) -> None:
        """Told at each epoch's end."""

    def flush(self) -> None:
        """Told before each checkpoint, from which a run may go on."""

    def log_metrics(self) -> dict[str, float]:
        """What it wishes to have logged."""
        return {}


class FrozenTeacher(Teacher):
    """A module that is in no checkpoint, optimiser, EMA copy or DDP bucket.

    What it holds sits in ``__dict__``, not in the module tree: ``train()`` does not reach it, and strict loading
    stays strict for the rest. ``to`` reaches it.

    Args:
        networks: those it asks, by name; a single one has the name ``""``.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.__dict__["asked_networks"] = dict(networks)

    def networks(self) -> dict[str, nn.Module]:
        return dict(self.__dict__["asked_networks"])

    def owned_modules(self) -> list[nn.Module]:
        """All that moves with it."""
        return list(self.networks().values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTeacher:
        for network in self.owned_modules():
            network._apply(fn)
        super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self


class Frozen(FrozenTeacher):
    """A network that only answers.

    Args:
        network: images [B, C, H, W] to logits.
        classes: the columns of its logits that are the data's classes, in their order; all of them if None.
    """

    network: nn.Module
    runner: nn.Module
    taps: Taps
    columns: Tensor | None
    picked: tuple[int, PerDevice] | None

    def __init__(self, network: nn.Module, classes: Sequence[int] | None = None) -> None:
        super().__init__({"": network})
        self.__dict__["network"] = self.__dict__["runner"] = network.eval().requires_grad_(False)
        self.precision: torch.dtype | None = None
        self.compiled_for: int | None = None
        if classes is not None and (not classes or min(classes) < 0 or len(set(classes)) < len(classes)):
            raise InputError(f"classes must name different columns, counted from 0, got {list(classes)}")
        columns = None if classes is None else torch.tensor(list(classes))
        self.__dict__["columns"] = columns
        self.__dict__["picked"] = None if columns is None else (int(columns.max()), PerDevice(columns))
        self.tap(())

    def tap(self, layers: Iterable[str]) -> None:
        """Names the layers whose tensors it gives besides its output, in place of those named before."""
        if "taps" in self.__dict__:
            self.taps.remove()
        self.__dict__["taps"] = Taps(self.runner, layers)

    def use_runner(self, runner: nn.Module, precision: torch.dtype | None, compiled_for: int | None = None) -> None:
        """Lets a faster copy of the network answer (see :mod:`kd.callbacks.speed`); the network itself stays as it is.

        Args:
            runner: with the same layers where any are tapped.
            precision: that it computes in, as autocast does; None for that of whoever asks.
            compiled_for: the one batch size for which compiled code is worth its making; None if none is compiled.
        """
        self.__dict__["runner"] = runner.eval().requires_grad_(False)
        self.precision, self.compiled_for = precision, compiled_for
        self.tap(self.taps.layers)

    def owned_modules(self) -> list[nn.Module]:
        return [self.network] if self.runner is self.network else [self.network, self.runner]

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": logits [B, C], layer: tensor, ...}`` for a batch, without gradient."""
        with self._circumstances(batch.images):
            return self._picked(self.taps(batch.images))

    def _circumstances(self, images: Tensor) -> AbstractContextManager[Any]:
        within = ExitStack()
        if self.precision is not None:
            lower = self.precision != torch.float32
            within.enter_context(torch.autocast(images.device.type, self.precision if lower else None, enabled=lower))
        if self.compiled_for not in (None, len(images)):
            within.enter_context(torch.compiler.set_stance("force_eager"))
        return within

    @torch.no_grad()
    def reference_logits(self, images: Tensor) -> Tensor:
        """The logits [B, C] of the network itself, in its own precision."""
        with torch.autocast(images.device.type, enabled=False):
            return self._picked({"": self.network(images)})[""]

    def _picked(self, answer: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the columns of the data's classes only."""
        if self.picked is not None:
            last, columns = self.picked
            if last >= (width := answer[""].shape[-1]):
                raise InputError(f"teacher.classes names column {last} of a teacher with {width} outputs")
            answer[""] = answer[""][:, columns.on(answer[""].device)[0]]
        return answer


def fingerprints(networks: Mapping[str, nn.Module]) -> str:
    """sha256 of one network's state, or of several networks' names and states; of a run's student, the run's."""
    if set(networks) == {""}:
        return fingerprint(unwrap(networks[""]))
    listed = [f"{name}:{fingerprint(unwrap(network))}" for name, network in sorted(networks.items())]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


class OnlineTeacher(Teacher):
    """A teacher that is part of the training: unlike a frozen one it is a module among others, and in checkpoints."""
