"""Nested containers by dotted key: flatten, get, and a copy with one value replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(node: Any, prefix: str = "", empty: bool = True) -> dict[str, Any]:
    """Nested mappings as one level, dotted key to value.

    Args:
        node: plain containers; lists are values.
        prefix: key of ``node`` itself.
        empty: whether an empty mapping counts as a value; else it is left out.
    """
    if not isinstance(node, Mapping) or (empty and not node):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key), empty)
    return flat


def get(node: Any, key: str) -> Any:
    """The value under a dotted key; None where it, or a mapping around it, is absent."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def replaced(node: Any, key: str, value: Any) -> dict[str, Any]:
    """A copy of ``node`` with ``value`` under a dotted key; mappings that are absent on the way are created."""
    first, _, inner = key.partition(".")
    if inner:
        value = replaced(node.get(first) if isinstance(node, Mapping) else None, inner, value)
    return {**(node or {}), first: value}
