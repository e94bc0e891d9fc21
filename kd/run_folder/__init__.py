"""What a run leaves on the disk, and how to read it."""

from __future__ import annotations

from kd.registry.lazy import exports

_FILES = {
    "load": "load",
}

__getattr__, __dir__ = exports(__name__, _FILES)
