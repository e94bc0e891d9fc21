"""Activation checkpointing: a student's blocks store their input only and run again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from kd.errors import InputError

CONTAINERS = (nn.Sequential, nn.ModuleList)


class Recomputed(nn.Module):
    """Mixed into a block's class; names of layers and keys of weights are unchanged."""

    def forward(self, *args: Any, **named: Any) -> Any:
        run = super().forward
        if not torch.is_grad_enabled():
            return run(*args, **named)
        return checkpoint(run, *args, use_reentrant=False, context_fn=partial(_contexts, self), **named)


def recompute(network: nn.Module) -> int:
    """Makes every block of a network recompute its activations; returns the number of blocks.

    Chen et al. 2016 (arXiv:1604.06174): stores the inputs of blocks instead of all activations, at the cost of a second
    forward pass. Gradients are those of the plain network, and batch norms count each batch once.

    Raises:
        InputError: a network without a sequence of blocks.
    """
    blocks = _blocks(network)
    if not blocks:
        raise InputError(f"speed.recompute=true: {type(network).__name__} has no sequence of blocks")
    for block in blocks:
        kind = type(block)
        block.__class__ = type(kind.__name__, (Recomputed, kind), {"__module__": kind.__module__})
    return len(blocks)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The elements of the outermost sequences that contain layers; a sequence of plain layers is one block."""
    blocks: list[nn.Module] = []
    for child in network.children():
        if type(child) in CONTAINERS:
            composite = [element for element in child.children() if any(True for _ in element.children())]
            inner = [block for element in composite for block in _within(element)]
            blocks += inner or ([child] if type(child) is nn.Sequential and _holds(child) else [])
    composite = [child for child in network.children() if type(child) not in CONTAINERS]
    return blocks or [block for child in composite for block in _blocks(child)]


def _within(element: nn.Module) -> list[nn.Module]:
    if type(element) not in CONTAINERS:
        return [element] if _holds(element) else []
    wrapper = nn.Module()
    wrapper.element = element
    return _blocks(wrapper)


def _holds(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], _FrozenStatistics]:
    return nullcontext(), _FrozenStatistics(block)


class _FrozenStatistics:
    """:func:`frozen_statistics`, entered again for each gradient of the same forward pass (DOT computes two)."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.open = block, ExitStack()

    def __enter__(self) -> None:
        self.open.enter_context(frozen_statistics(self.block))

    def __exit__(self, *error: Any) -> None:
        self.open.close()


@contextmanager
def frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Leaves a network's running statistics unchanged while a batch runs for the second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    saved = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum, norm.num_batches_tracked = momentum, count
