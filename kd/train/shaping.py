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

from kd.callbacks.batch_statistics import BatchStatistics
from kd.callbacks.modes import mode_of
from kd.errors import InputError
from kd.registry import locate

SHAPING = (
    *(WeightAveraging, StochasticWeightAveraging, BaseFinetuning, ModelPruning, GradientAccumulationScheduler),
    BatchStatistics,
)


def checked(before: Mapping[str, Any], after: Mapping[str, Any], run: str) -> dict[str, Any]:
    """The callbacks of a resumed run, among them the shaping ones that it has had so far, with their options.

    Args:
        before: the run's callbacks, key to node.
        after: those that it is resumed with.
        run: as the user gave it, for messages.

    Raises:
        InputError: one was added, removed or changed.
    """
    for key in (*before, *(key for key in after if key not in before)):
        old, new = before.get(key), after.get(key)
        if old == new or not (_shapes(old) or _shapes(new)):
            continue
        done = "removed from" if not new else "added to" if not old else "changed in"
        name = (old or new)["_target_"].rpartition(".")[2]  # type: ignore[index]
        raise InputError(
            f"resume={run}: callbacks.{key} cannot be {done} a run that has begun, as {name} shapes the weights that "
            "are trained; leave it as it was, or start a new run"
        )
    return {key: _followed(before.get(key), new) for key, new in after.items()}


def _followed(there: Any, here: Any) -> Any:
    """A callback's node: where it monitors another metric than before, in the mode of that one."""
    if not isinstance(there, Mapping) or not isinstance(here, Mapping) or there.get("mode") != here.get("mode"):
        return here
    old, new = mode_of(there.get("monitor")), mode_of(here.get("monitor"))
    return {**here, "mode": new} if new and here.get("mode") == old else here


def _shapes(node: Any) -> bool:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        return False
    try:
        callback = locate(":".join(target.rpartition(".")[::2]))
    except (ImportError, AttributeError, ValueError):
        return False  # which is said where it is made
    return isinstance(callback, type) and issubclass(callback, SHAPING)
