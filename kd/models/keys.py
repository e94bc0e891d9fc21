"""Matches a file's tensors to a network's: prefixes, foreign keys, and messages where they do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from kd.errors import nearest
from kd.models.weight_files import Weights

PREFIXES = ("module.", "_orig_mod.", "student.", "model.", "net.", "network.")
# What other tools store with a network's own tensors: profilers' counts, an average's count, losses with weights.
COUNTS = ("total_ops", "total_params", "n_averaged")
LOSSES = ("criterion", "criterions", "loss", "loss_fn", "loss_fun", "loss_func", "loss_function")
UNCOUNTED = "num_batches_tracked"  # torch counted no batches before 0.4.1, and the count does not affect outputs
FIRST = 3  # keys that a message shows


def without_prefix(weights: Weights, names: Iterable[str]) -> Weights:
    """The weights under the network's own keys: prefixes of every key such as ``module.`` are removed.

    Of a file that also contains other modules (a distiller's) only the part under ``student.`` is used. Any other
    prefix is removed if it is the only one under which all of the network's keys exist.
    """
    state, wrappers, expected = weights.state, list(weights.wrappers), set(names)
    while state and not expected & set(state):
        prefix = _common(state) or _complete(state, expected)
        if prefix is None and any(key.startswith("student.") for key in state):
            prefix = "student."
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        wrappers.append(prefix)
    return weights._replace(state=state, wrappers=tuple(wrappers))


def _common(state: Mapping[str, Tensor]) -> str | None:
    """A common prefix in :data:`PREFIXES` of every key, without foreign ones."""
    keys = [key for key in state if not is_foreign(key)]
    return next((p for p in PREFIXES if keys and all(key.startswith(p) for key in keys)), None)


def _complete(state: Mapping[str, Tensor], expected: Collection[str]) -> str | None:
    """The only prefix under which all keys of a network exist."""
    needed = [key for key in expected if not key.endswith(UNCOUNTED)]
    if not needed:
        return None
    probe = max(needed, key=len)
    prefixes = {key.removesuffix(probe) for key in state if key.endswith(f".{probe}")}
    complete = [prefix for prefix in prefixes if all(prefix + key in state for key in needed)]
    return complete[0] if len(complete) == 1 else None


def is_foreign(key: str) -> bool:
    """Whether a key belongs to something that scripts and tools store with a network's weights."""
    return key.rpartition(".")[2] in COUNTS or key.partition(".")[0] in LOSSES


def mismatch(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Why a file's tensors do not fit a network's, with the first keys of both; None if they do."""
    missing = [key for key in expected if key not in state and not key.endswith(UNCOUNTED)]
    extra = [key for key in state if key not in expected]
    shared = [key for key in expected if key in state]
    shapes = [_shapes(key, state, expected) for key in shared if expected[key].shape != state[key].shape]
    types = [_types(key, state, expected) for key in shared if not _holds(expected[key], state[key])]
    problems = []
    for what, keys in (
        ("missing", missing),
        ("unexpected", extra),
        ("of another shape", shapes),
        ("of another type", types),
    ):
        if keys:
            problems.append(f"{len(keys)} {what}, first {', '.join(keys[:FIRST])}")
    if not problems:
        return None
    if missing and extra:
        return f"{'; '.join(problems[:2])}{_hint(missing, extra, expected)}"
    return problems[0]


def _hint(missing: list[str], extra: list[str], expected: Mapping[str, Tensor]) -> str:
    """A prefix that would make keys fit, or the file's key nearest to the first missing one."""
    wanted = missing[0]
    prefixes = Counter(key.removesuffix(f".{name}") for name in missing for key in extra if key.endswith(f".{name}"))
    if prefixes:
        prefix, count = prefixes.most_common(1)[0]
        alike = ", ".join(f"{name}." for name, times in prefixes.items() if times == count)
        return f"; {count} of them are in the file under the prefix {alike} (set checkpoint_key={prefix} to remove it)"
    if own_prefix := next(
        (key.removesuffix(f".{name}") for key in missing for name in extra if key.endswith(f".{name}")), ""
    ):
        return f"; the network's keys have the prefix {own_prefix}., which the file's keys lack"
    near = nearest(wanted, extra)
    return f"; nearest to {wanted} is {near}" if near else ""


def _shapes(key: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{key} {list(state[key].shape)} for {list(expected[key].shape)}"


def _types(key: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{key} {state[key].dtype} for {expected[key].dtype}"


def _holds(tensor: Tensor, value: Tensor) -> bool:
    """Whether a value can be copied without changing its kind: no integers as weights, no complex as real numbers."""
    if tensor.is_complex() or value.is_complex():
        return tensor.is_complex() and (value.is_complex() or value.is_floating_point())
    return value.is_floating_point() or not tensor.is_floating_point()
