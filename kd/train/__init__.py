"""Trains a resolved configuration and writes the run folder."""

from __future__ import annotations

from kd.registry.lazy import exports

_FILES = {
    "train": "pipeline",
}

__getattr__, __dir__ = exports(__name__, _FILES)
