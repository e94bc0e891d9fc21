"""The loss zoo: ``kd.losses["kl"]`` is a class, ``list(kd.losses)`` the names, ``kd.losses.register`` adds one.

Each method has a file, and every file of this package is imported automatically; files whose names begin with an
underscore contain shared helpers. A loss is any module whose ``forward`` has parameters out of
``student, teacher, labels, index`` and returns an unweighted scalar; pure functions precede the classes. All of them
can be imported from here. :data:`MEMBERS` lists the optional members of a loss.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules

from kd.registry import RegistryPackage
from kd.registry import losses as registry

MEMBERS = {
    "build": "build(student, teacher): called once with example tensors, to create what depends on their shapes",
    "attach": "attach(student, teacher): called once before build with the networks, teacher None if there is not one",
    "attach_data": "attach_data(samples, labels): called once before build with the training set's size and labels [N]",
    "on_epoch": "on_epoch(epoch): called at the start of every epoch, counted from 0",
    "logged": "logged() -> dict of scalars: logged as train/TERM/NAME",
    "predict": "predict(student) -> logits: replaces the student's output in validation, test and export",
    "takes_unlabelled": "True: labels may be unknown, -1 as a class number and all 0 as probabilities",
    "takes_mixed": "True: labels may be probabilities [B, C], as mixup and cutmix make them",
    "any_layers": "True: student and teacher may have different numbers of layers",
    "init_epochs": "int: epochs of pre-training at the start of the run, before the terms with labels count",
    "init_rate": "float: learning rate of pre-training as a share of the run's",
}  # all public names of a loss that kd uses besides forward

for _file in [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]:
    _defined = {k: v for k, v in vars(_file).items() if getattr(v, "__module__", None) == _file.__name__}
    globals().update(_defined)  # kd.losses.at is the function, though its file has the same name

sys.modules[__name__].__class__ = RegistryPackage

__all__ = ["MEMBERS", "registry"]
