"""Keywords of a model's function: kd's own and those of timm and torchvision, one for the other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kd.registry.schema import parameters

PAIRS = (("classes", "num_classes"), ("channels", "in_channels"))


def accept_both_names(model: Callable[..., Any]) -> Callable[..., Any]:
    """A function or class that accepts either keyword of each pair; its signature and dotted path do not change.

    With a parameter ``shape`` that has a default, [C, H, W], in place of ``channels``, the latter are accepted too, for
    images of the default's height and width. A class is modified in place.
    """
    function = vars(model).get("__init__") if inspect.isclass(model) else model
    if not inspect.isfunction(function):
        return model
    names = parameters(model)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **_renamed(model.__name__, names, options))

    if inspect.isclass(model):
        model.__init__ = call  # type: ignore[method-assign]
        return model
    return call


def _renamed(model: str, names: Mapping[str, inspect.Parameter], options: dict[str, Any]) -> dict[str, Any]:
    """The options under the names that the function has."""
    for pair in PAIRS:
        if all(key in options for key in pair) and not all(key in names for key in pair):
            raise TypeError(f"{model}() got both {pair[0]} and {pair[1]}, which mean the same")
        for key, other in (pair, pair[::-1]):
            if key in options and key not in names and other in names:
                options[other] = options.pop(key)
    shape: Any = names["shape"].default if "shape" in names else inspect.Parameter.empty
    count = next((key for key in PAIRS[1] if key in options and key not in names), None)
    if count is None or shape is inspect.Parameter.empty:
        return options
    if "shape" in options:
        raise TypeError(f"{model}() got both shape and {count}; shape has the channels in front")
    return {key: value for key, value in options.items() if key != count} | {"shape": (options[count], *shape[1:])}
