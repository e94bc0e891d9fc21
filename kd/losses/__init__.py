"""The loss zoo: ``kd.losses["kl"]`` is a class, ``list(kd.losses)`` the names, ``kd.losses.register`` adds one.

Every module of this package is a family, grouped by kind of signal, and is imported as it is found: a new loss is a
function and a class in a family, or a file. A loss is any module whose ``forward`` names what it needs out of
``student, teacher, labels, index`` and returns an unweighted scalar; pure functions stand above the classes. Functions
and classes of all families can be imported from here.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from kd.registry import RegistryPackage
from kd.registry import losses as registry

_FAMILIES = [import_module(f"{__name__}.{family.name}") for family in iter_modules(__path__)]


def __getattr__(name: str) -> Any:
    for family in _FAMILIES:
        found = vars(family).get(name)
        if getattr(found, "__module__", None) == family.__name__:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = RegistryPackage

__all__ = ["registry"]
