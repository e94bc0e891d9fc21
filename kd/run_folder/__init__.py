"""The run folder: its files, and how to read them."""

from __future__ import annotations

from kd.registry.lazy import exports

_FILES = {
    "load": "load",
}

__getattr__, __dir__ = exports(__name__, _FILES)
