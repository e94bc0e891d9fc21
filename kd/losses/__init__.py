"""The loss zoo: ``kd.losses["kl"]`` is a class, ``list(kd.losses)`` the names, ``kd.losses.register`` adds one.

Each method has a file, and every file of this package is imported as it is found; files whose names begin with an
underscore hold what several methods share. A loss is any module whose ``forward`` names what it needs out of
``student, teacher, labels, index`` and returns an unweighted scalar; pure functions stand above the classes. All of
them can be imported from here.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules

from kd.registry import RegistryPackage
from kd.registry import losses as registry

for _file in [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]:
    _defined = {k: v for k, v in vars(_file).items() if getattr(v, "__module__", None) == _file.__name__}
    globals().update(_defined)  # kd.losses.at is the function, though its file has the same name

sys.modules[__name__].__class__ = RegistryPackage

__all__ = ["registry"]
