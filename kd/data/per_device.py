"""Constant tensors with a copy on each device."""

from __future__ import annotations

import torch
from torch import Tensor


class PerDevice:
    """Constant tensors, copied to each device once."""

    def __init__(self, *host: Tensor) -> None:
        self.host = host
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors on ``device``."""
        if device not in self._copies:
            self._copies[device] = tuple(tensor.to(device) for tensor in self.host)
        return self._copies[device]
