"""A network from its configuration node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kd.errors import InputError, located
from kd.models.check import usable
from kd.models.hub import standard_arguments
from kd.models.normalized import Normalized
from kd.models.weights import prepare
from kd.registry import build


def network_of(
    node: Mapping[str, Any],
    key: str,
    classes: int,
    shape: list[int],
    data_mean: Any,
    data_std: Any,
    trust: bool = True,
    **options: Any,
) -> Normalized:
    """A network from its configuration node, with its normalisation in front.

    ``options`` are those of :func:`kd.models.weights.prepare`, for example its weights.
    """
    network = build(node, key, trust=trust, **standard_arguments(classes, shape))
    if not isinstance(network, nn.Module):
        raise InputError(f"{key} returned a {type(network).__name__}, not an nn.Module")
    side = options.get("size")
    network = usable(network, key, (shape[0], side, side) if side else shape)
    with located(key):
        return prepare(network, data_mean, data_std, **options)
