"""Teachers: the base classes, and a frozen network as a teacher."""

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
    """The base class of teachers: their networks, and the methods that a run calls."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The teacher's networks by name; the name of a single one is ``""``."""

    def fingerprint(self) -> str:
        """sha256 of the networks' state."""
        return fingerprints(self.networks())

    def frozen_members(self) -> dict[str, Frozen]:
        """Its frozen members by name; the name of a single one is ``""``. Empty for an online teacher."""
        return {}

    def cached_members(self) -> dict[str, Any]:
        """Its members that read their logits from a table, by name."""
        return {}

    def describe(self) -> str:
        """How several members are combined; empty for a single one."""
        return ""

    def on_epoch_end(self) -> None:
        """Called at the end of an epoch."""

    def flush(self) -> None:
        """Called before a checkpoint is saved, from which a run may resume."""

    def log_metrics(self) -> dict[str, float]:
        """Metrics to log, by name."""
        return {}


class FrozenTeacher(Teacher):
    """A teacher that is excluded from checkpoints, optimisers, EMA copies and DDP buckets.

    Its networks are in ``__dict__``, not in the module tree: ``train()`` does not affect them, and the other modules
    can be loaded strictly. ``to`` moves them.

    Args:
        networks: its networks by name; the name of a single one is ``""``.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.__dict__["frozen_networks"] = dict(networks)

    def networks(self) -> dict[str, nn.Module]:
        return dict(self.__dict__["frozen_networks"])

    def owned_modules(self) -> list[nn.Module]:
        """All modules that move with the teacher."""
        return list(self.networks().values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTeacher:
        for network in self.owned_modules():
            network._apply(fn)
        super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self


class Frozen(FrozenTeacher):
    """A network as a teacher, in eval mode and without gradients.

    Args:
        network: maps images [B, C, H, W] to logits.
        classes: the columns of its logits for the data's classes, in their order; all of them if None.

    Raises:
        InputError: ``classes`` is empty, or has negative or repeated columns.
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
            raise InputError(f"classes must be distinct columns, counted from 0, got {list(classes)}")
        columns = None if classes is None else torch.tensor(list(classes))
        self.__dict__["columns"] = columns
        self.__dict__["picked"] = None if columns is None else (int(columns.max()), PerDevice(columns))
        self.tap(())

    def frozen_members(self) -> dict[str, Frozen]:
        return {"": self}

    def tap(self, layers: Iterable[str]) -> None:
        """Sets the layers to tap besides the output, replacing any set before."""
        if "taps" in self.__dict__:
            self.taps.remove()
        self.__dict__["taps"] = Taps(self.runner, layers)

    def use_runner(self, runner: nn.Module, precision: torch.dtype | None, compiled_for: int | None = None) -> None:
        """Runs a faster copy in place of the network (see :mod:`kd.callbacks.speed`); the network itself is unchanged.

        Args:
            runner: the copy; must have the layers that are tapped.
            precision: the precision that it computes in, by autocast; None for the caller's.
            compiled_for: the only batch size that uses compiled code; None if nothing is compiled.
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
        """Selects the columns of the data's classes."""
        if self.picked is not None:
            last, columns = self.picked
            if last >= (width := answer[""].shape[-1]):
                raise InputError(f"teacher.classes must be columns below the teacher's {width} outputs, got {last}")
            answer[""] = answer[""][:, columns.on(answer[""].device)[0]]
        return answer


def fingerprints(networks: Mapping[str, nn.Module]) -> str:
    """sha256 of one network's state, as recorded for a run's student, or of several networks' names and states."""
    if set(networks) == {""}:
        return fingerprint(unwrap(networks[""]))
    listed = [f"{name}:{fingerprint(unwrap(network))}" for name, network in sorted(networks.items())]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


class OnlineTeacher(Teacher):
    """A teacher that changes in training: unlike a frozen one, it is an ordinary submodule, saved in checkpoints."""
