"""Which parameters weight decay is for: weights of layers, and not biases, norms, tokens and positions."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# by the last two parts of a parameter's name, as a table of positions may be an nn.Embedding
NAMES = re.compile(
    r"(^|[._])(\w*tokens?|pos(ition)?_?emb(ed|eddings?)?|position_bias_table|temperature|logit_scale)(\.|$)"
)


def parameter_groups(module: nn.Module, decay_norm_bias: bool) -> list[dict[str, Any]]:
    """The trained parameters as an optimiser's groups: one, or a second one whose weight decay is 0."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    bare = set() if decay_norm_bias else undecayed(module) & trained.keys()
    groups: list[dict[str, Any]] = [{"params": [p for name, p in trained.items() if name not in bare]}]
    if not bare:
        return groups
    groups.append({"params": [p for name, p in trained.items() if name in bare], "weight_decay": 0.0})
    return [group | {"name": name} for group, name in zip(groups, ("decay", "no_decay")) if group["params"]]


def undecayed(module: nn.Module) -> set[str]:
    """The names of parameters of one dimension or none, of norms, tokens and position embeddings, and of those that a
    network of timm names by ``no_weight_decay()``."""
    found = set()
    for prefix, inner in module.named_modules():
        start = f"{prefix}." if prefix else ""
        stated: Any = getattr(inner, "no_weight_decay", None)
        found |= {f"{start}{name}" for name in (stated() if callable(stated) else ())}
        for name, parameter in inner.named_parameters(recurse=False):
            path = ".".join(f"{start}{name}".split(".")[-2:])
            if parameter.ndim <= 1 or isinstance(inner, NORMS) or name == "bias" or NAMES.search(path):
                found.add(f"{start}{name}")
    return found
