"""Data sets: ``kd.data["cifar10"]`` is a function that gives :class:`Arrays`, ``list(kd.data)`` the names."""

import sys

from kd.data import hub, photos, sources
from kd.data.batch import Arrays, Batch
from kd.data.memory import Memory
from kd.registry import RegistryPackage
from kd.registry import sources as registry

sys.modules[__name__].__class__ = RegistryPackage

__all__ = ["Arrays", "Batch", "Memory", "hub", "photos", "registry", "sources"]
