"""How each golden method is run with kd: ``RUNNERS[method](inputs, hyperparameters) -> outputs by name``.

``inputs`` are the case's ``in_*`` arrays without the prefix, as float64 or int64 tensors; those whose gradient
the case holds require it. The answer has every ``out_*`` of the case that is no gradient, without the prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Inputs = dict[str, Tensor]
Runner = Callable[[Inputs, dict[str, Any]], dict[str, Tensor]]

RUNNERS: dict[str, Runner] = {}


def runs(*methods: str) -> Callable[[Runner], Runner]:
    """Decorator: the function runs these methods' cases."""

    def keep(runner: Runner) -> Runner:
        RUNNERS.update(dict.fromkeys(methods, runner))
        return runner

    return keep


from runners import divergences  # noqa: E402, F401
