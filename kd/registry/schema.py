"""Typed configuration nodes from signatures: names, types and defaults are written once, in the function."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

MISSING = "???"  # OmegaConf's marker of a mandatory value


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function, or of a class's constructor."""
    named = inspect.signature(function).parameters
    return {name: p for name, p in named.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters with a default, and the defaults."""
    return {name: p.default for name, p in parameters(function).items() if p.default is not p.empty}


def node_of(function: Callable[..., Any]) -> type:
    """A typed node of a function's parameters, without a ``_target_``."""
    return dataclass_of(function.__name__, fields_of(function))


def fields_of(function: Callable[..., Any], skip: tuple[str, ...] = ()) -> dict[str, tuple[Any, Any]]:
    """Each parameter's type, as far as OmegaConf can check it, and default, without those in ``skip``."""
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    return {
        name: (_hint(hints.get(name, Any)), MISSING if p.default is p.empty else p.default)
        for name, p in parameters(function).items()
        if name not in skip
    }


def dataclass_of(name: str, fields: Mapping[str, tuple[Any, Any]]) -> type:
    """A dataclass of fields as :func:`fields_of` gives them."""
    return dataclasses.make_dataclass(name, [(key, hint, _field(default)) for key, (hint, default) in fields.items()])


def _field(default: Any) -> Any:
    if isinstance(default, (list, dict, tuple)):
        return dataclasses.field(default_factory=lambda: list(default) if isinstance(default, tuple) else default)
    return dataclasses.field(default=default)


def _hint(hint: Any) -> Any:
    """The part of a type that OmegaConf can check: plain values and optional plain values."""
    arguments = typing.get_args(hint)
    plain = (str, int, float, bool)
    if typing.get_origin(hint) is typing.Literal:
        return str if all(isinstance(value, str) for value in arguments) else Any
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [_hint(a) for a in arguments if a is not type(None)]
        if len(inner) == 1 and inner[0] in plain:
            return inner[0] | None if type(None) in arguments else inner[0]
        return Any
    return hint if hint in plain else Any
