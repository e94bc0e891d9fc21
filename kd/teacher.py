"""The frozen teacher: it answers ``teacher(batch)`` and is otherwise out of everybody's sight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.models.weights import fingerprint
from kd.taps import Taps


class Frozen(nn.Module):
    """A network that only answers.

    It sits in ``__dict__``, not in the module tree: it is in no checkpoint, optimiser, EMA copy or DDP
    bucket, ``train()`` does not reach it, and strict loading stays strict for the rest. ``to`` reaches it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: nn.Module
        self.taps: Taps
        self.__dict__["network"] = network.eval().requires_grad_(False)
        self.tap(())

    def tap(self, layers: Iterable[str]) -> None:
        """Names the layers whose tensors it gives besides its output, in place of those named before."""
        if "taps" in self.__dict__:
            self.taps.remove()
        self.__dict__["taps"] = Taps(self.network, layers)

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": logits [B, C], layer: tensor, ...}`` for a batch, without gradient."""
        return self.taps(batch.images)

    def fingerprint(self) -> str:
        """sha256 of its state."""
        return fingerprint(self.network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.network._apply(fn)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self
