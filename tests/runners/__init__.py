"""How each golden method is run with kd: ``RUNNERS[method](inputs, hyperparameters) -> outputs by name``.

``inputs`` are the case's ``in_*`` arrays without the prefix, as float64 or int64 tensors; those whose gradient
the case holds require it. The answer has every ``out_*`` of the case that is no gradient, without the prefix.
Each module may also have ``EXAMPLES``: for a registered loss, example arguments of its ``forward`` by batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import Tensor

Inputs = dict[str, Tensor]
Runner = Callable[[Inputs, dict[str, Any]], dict[str, Tensor]]

RUNNERS: dict[str, Runner] = {}
EXAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {}


def runs(*methods: str) -> Callable[[Runner], Runner]:
    """Decorator: the function runs these methods' cases."""

    def keep(runner: Runner) -> Runner:
        RUNNERS.update(dict.fromkeys(methods, runner))
        return runner

    return keep


for module in iter_modules(__path__):
    EXAMPLES |= getattr(import_module(f"{__name__}.{module.name}"), "EXAMPLES", {})
