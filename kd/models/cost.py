"""The size of a network: its parameters, and its multiply-accumulates for one image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def size_of(network: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Parameters, and multiply-accumulates of convolutions and matrix products for one image of ``shape`` [C, H, W].

    If torch's counter fails on a network's own operations, only convolution and linear layers are counted.
    """
    modes = [(module, module.training) for module in network.modules()]
    first = next(network.parameters(), None)
    image = torch.zeros(1, *shape, device=None if first is None else first.device)
    network.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            network(image)
        macs = counter.get_total_flops() // 2
    except Exception as error:  # the counter meets operations of anyone's
        log.info("MACs: only of convolution and linear layers, because torch's counter fails: %s", type(error).__name__)
        macs = _by_layers(network, image)
    finally:
        for module, training in modes:
            module.training = training
    return {"parameters": sum(p.numel() for p in network.parameters()), "macs": macs}


def _by_layers(network: nn.Module, image: Tensor) -> int:
    macs = 0

    def count(module: Any, inputs: Any, output: Tensor) -> None:
        nonlocal macs
        each = module.weight[0].numel() if isinstance(module, CONVOLUTIONS) else module.in_features
        macs += output.numel() * each

    layers = [module for module in network.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    hooks = [module.register_forward_hook(count) for module in layers]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return macs
