"""Dotted paths that run folders and users' yaml hold, and where they lead today.

A path that kd writes names a package and not a file in it (``kd.losses.CE``), so that files may move. Older run folders
name files (``kd.losses.hard.CE``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PACKAGES = ("kd.losses",)  # that hand on whatever is registered in one of their files


def current(path: str) -> str:
    """The dotted path by which a class or function is written today."""
    package = next((package for package in PACKAGES if path.startswith(f"{package}.")), None)
    return path if package is None else f"{package}.{path.rpartition('.')[2]}"


def with_current(node: Any) -> Any:
    """A copy of plain containers in which every ``_target_`` is written as today."""
    if isinstance(node, Mapping):
        copied = {key: with_current(value) for key, value in node.items()}
        if isinstance(copied.get("_target_"), str):
            copied["_target_"] = current(copied["_target_"])
        return copied
    return [with_current(value) for value in node] if isinstance(node, (list, tuple)) else node
