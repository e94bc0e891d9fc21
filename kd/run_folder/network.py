"""A network from its configuration node, and its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kd.errors import InputError, placed
from kd.models.check import usable
from kd.models.hub import offered
from kd.models.normalized import Normalized
from kd.models.weights import prepare
from kd.registry import build, models


def network_of(
    node: Mapping[str, Any],
    at: str,
    classes: int,
    shape: list[int],
    data_mean: Any,
    data_std: Any,
    trust: bool = True,
    **options: Any,
) -> Normalized:
    """A network from its own configuration node, with its normalisation in front.

    ``options`` are those of :func:`kd.models.weights.prepare`: its weights, say.
    """
    network = build(node, at, trust=trust, **offered(classes, shape))
    if not isinstance(network, nn.Module):
        raise InputError(f"{at} gave a {type(network).__name__}, not an nn.Module")
    side = options.get("size")
    network = usable(network, at, (shape[0], side, side) if side else shape)
    with placed(at):
        return prepare(network, data_mean, data_std, **options)


def name_of(node: Mapping[str, Any]) -> str:
    """What a network is called: its name in its library, that of an imported function, else the registered or dotted
    name."""
    target = str(node["_target_"])
    known = models.name_of(target)
    function = str(node.get("path") or "").rpartition(":")[2] if known == "import" else ""
    return str(node.get("name") or function or known or target.rpartition(".")[2])


def title_of(node: Mapping[str, Any]) -> str:
    """What a network is called in messages: an imported one by its path."""
    return str(node.get("path") or name_of(node))
