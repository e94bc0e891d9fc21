"""A network's batch norms before the ReLUs that end its stages, found by structure or by name."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd.errors import InputError, unknown

SHORTCUTS = ("downsample", "shortcut", "skip")


def norm_named(network: nn.Module, name: str) -> _BatchNorm:
    """The batch norm of that name."""
    norms = {key: module for key, module in network.named_modules() if _is_norm(module)}
    if name not in norms:
        raise unknown(f"batch norm of {type(network).__name__}", name, norms)
    return norms[name]


def norms_of_stages(network: nn.Module) -> list[_BatchNorm]:
    """One batch norm for each of the network's stages, in order.

    A stage is a direct child with submodules. Its batch norm is its last layer with parameters, without shortcuts, or,
    if that is not a batch norm, as in pre-activation networks, the layer that follows. In a network without stages
    every batch norm counts.

    Raises:
        InputError: no such batch norm at all.
    """
    layers = [
        (name.split(".")[0], module)
        for name, module in network.named_modules()
        if not any(module.children())
        and any(True for _ in module.parameters())
        and not any(word in name.lower() for word in SHORTCUTS)
    ]
    stages = {name for name, module in network.named_children() if any(module.children())}
    norms = [] if stages else [module for _, module in layers if _is_norm(module)]
    for (stage, last), (following, after) in pairwise([*layers, ("", nn.Identity())]):
        if stage in stages and following != stage:
            norms += [module for module in (last, after) if _is_norm(module)][:1]
    if not norms:
        raise InputError(f"{type(network).__name__} has no stages with batch norms; set batch_norms to their names")
    return norms


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.affine
