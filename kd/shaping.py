"""Callbacks that shape the weights under training: a run that is resumed has the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)

from kd.errors import InputError
from kd.registry import locate

SHAPING = (WeightAveraging, StochasticWeightAveraging, BaseFinetuning, ModelPruning, GradientAccumulationScheduler)


def check_callbacks(before: Mapping[str, Any], after: Mapping[str, Any], run: str) -> None:
    """Whether a resumed run has the shaping callbacks that it has had so far, with their options.

    Args:
        before: the run's callbacks, key to node.
        after: those that it is resumed with.
        run: as the user gave it, for messages.

    Raises:
        InputError: one was added, removed or changed.
    """
    for key in (*before, *(key for key in after if key not in before)):
        there, here = before.get(key), after.get(key)
        if there == here or not (_shapes(there) or _shapes(here)):
            continue
        done = "removed from" if not here else "added to" if not there else "changed in"
        name = (there or here)["_target_"].rpartition(".")[2]  # type: ignore[index]
        raise InputError(
            f"resume={run}: callbacks.{key} cannot be {done} a run that has begun, as {name} shapes the weights that "
            "are trained; leave it as it was, or start a new run"
        )


def _shapes(node: Any) -> bool:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        return False
    try:
        found = locate(":".join(target.rpartition(".")[::2]))
    except (ImportError, AttributeError, ValueError):
        return False  # which is said where it is made
    return isinstance(found, type) and issubclass(found, SHAPING)
