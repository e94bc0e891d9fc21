"""The model zoo: ``kd.models["resnet20"]`` is a function, ``list(kd.models)`` the names.

A model is any function or class that declares what it needs out of ``classes``, ``num_classes``, ``channels``,
``in_channels`` and ``shape`` as parameters and returns a network from images to logits. Those of the zoo accept
``num_classes`` and ``in_channels`` as well as ``classes`` and ``channels``.
"""

import sys

from kd.models import hub, mobile, resnet, resnet_large, shuffle, small, vgg, vit, wrn
from kd.models.normalized import Normalized
from kd.models.weights import prepare
from kd.registry import RegistryPackage
from kd.registry import models as registry

sys.modules[__name__].__class__ = RegistryPackage

__all__ = [
    "Normalized",
    "hub",
    "mobile",
    "prepare",
    "registry",
    "resnet",
    "resnet_large",
    "shuffle",
    "small",
    "vgg",
    "vit",
    "wrn",
]
