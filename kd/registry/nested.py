"""Nested mappings by dotted key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key, which begins with ``prefix``; an empty mapping is a leaf."""
    if not isinstance(node, Mapping) or not node:
        return {prefix.rstrip("."): node}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{prefix}{name}.").items()}


def value_at(node: Any, key: str) -> Any:
    """The value of a dotted key; None if it is absent."""
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def replaced(node: Any, key: str | Sequence[str], value: Any) -> Any:
    """A copy of nested mappings with another value of a dotted key."""
    first, *others = key.split(".") if isinstance(key, str) else key
    child = node.get(first) if isinstance(node, Mapping) else None
    return {**(node or {}), first: replaced(child, others, value) if others else value}
