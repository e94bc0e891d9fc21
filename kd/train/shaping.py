"""Callbacks that affect the trained weights: a resumed run must have the same ones."""

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
    """The callbacks of a resumed run, after checking that those in :data:`SHAPING` are unchanged.

    Args:
        before: the run's callbacks, key to node.
        after: the callbacks with which it resumes.
        run: the run folder as typed, for messages.

    Raises:
        InputError: a callback in :data:`SHAPING` was added, removed or changed.
    """
    for key in (*before, *(key for key in after if key not in before)):
        old, new = before.get(key), after.get(key)
        if old == new or not (_shapes(old) or _shapes(new)):
            continue
        done = "removed from" if not new else "added to" if not old else "changed in"
        name = (old or new)["_target_"].rpartition(".")[2]  # type: ignore[index]
        raise InputError(
            f"resume={run}: callbacks.{key} cannot be {done} a run that has started, as {name} affects the trained "
            "weights; leave it as it was, or start a new run"
        )
    return {key: _with_mode(before.get(key), new) for key, new in after.items()}


def _with_mode(before: Any, after: Any) -> Any:
    """A callback's node, with ``mode`` set by its metric if that has changed and ``mode`` has not."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping) or before.get("mode") != after.get("mode"):
        return after
    old, new = mode_of(before.get("monitor")), mode_of(after.get("monitor"))
    return {**after, "mode": new} if new and after.get("mode") == old else after


def _shapes(node: Any) -> bool:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        return False
    try:
        callback = locate(":".join(target.rpartition(".")[::2]))
    except (ImportError, AttributeError, ValueError):
        return False  # building it reports the error
    return isinstance(callback, type) and issubclass(callback, SHAPING)
