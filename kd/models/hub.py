"""Networks from elsewhere: torchvision, timm and any import path.

The class count is fitted by the library itself, or, where weights for another class count are asked for, by a
new last linear layer; so is the number of input channels, by a new first convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from kd.errors import InputError, unknown
from kd.registry import models, parameters


@models.register("torchvision")
def torchvision(name: str, classes: int, channels: int = 3, weights: str | None = None) -> nn.Module:
    """A torchvision classification model, ``name`` as in ``torchvision.models.list_models()``.

    ``weights`` is a name such as ``DEFAULT`` or ``IMAGENET1K_V1`` and needs the network on first use.

    Raises:
        InputError: an unknown name or weights.
    """
    from torchvision import models as library

    known = library.list_models(module=library)
    if name not in known:
        raise unknown("torchvision model", name, known)
    if weights is None:
        return _fit_channels(library.get_model(name, num_classes=classes), channels)
    try:
        network = library.get_model(name, weights=weights)
    except (KeyError, ValueError) as error:
        raise unknown(f"weights of {name}", weights, list(library.get_model_weights(name).__members__)) from error
    return _fit_channels(_fit_classes(network, classes), channels)


@models.register("timm")
def timm(name: str, classes: int, channels: int = 3, pretrained: bool = False) -> nn.Module:
    """A timm model, ``name`` as in ``timm.list_models()``; ``pretrained`` needs the network on first use.

    Raises:
        InputError: timm is not installed, or an unknown name.
    """
    try:
        library: Any = import_module("timm")
    except ImportError as error:
        raise InputError("timm is not installed: pip install 'kd-lightning[timm]'") from error
    if not library.is_model(name.split(".")[0]):
        raise unknown("timm model", name, library.list_models())
    return library.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)


@models.register("import")
def import_path(path: str, classes: int, shape: Sequence[int]) -> nn.Module:
    """A network of your own: ``path`` is ``package.module:function``; it is called with what it names.

    Of ``classes``, ``num_classes``, ``channels``, ``in_channels`` and ``shape`` (the images' [C, H, W]) the
    function gets those it has parameters for.

    Raises:
        InputError: the path cannot be imported, or does not give an ``nn.Module``.
    """
    module, _, attribute = path.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import {path!r} (write package.module:function): {error}") from error
    offer = offered(classes, shape)
    network = function(**{key: offer[key] for key in parameters(function) if key in offer})
    if not isinstance(network, nn.Module):
        raise InputError(f"{path} gave a {type(network).__name__}, not an nn.Module")
    return network


def offered(classes: int, shape: Sequence[int]) -> dict[str, Any]:
    """What kd tells a model's function, under the names that libraries use for it."""
    channels = {"channels": shape[0], "in_channels": shape[0]}
    return {"classes": classes, "num_classes": classes, **channels, "shape": list(shape)}


def _fit_classes(network: nn.Module, classes: int) -> nn.Module:
    name, last = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    if last.out_features != classes:
        _replace(network, name, nn.Linear(last.in_features, classes, bias=last.bias is not None))
    return network


def _fit_channels(network: nn.Module, channels: int) -> nn.Module:
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels != channels:
        options = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        bias = first.bias is not None
        _replace(network, name, nn.Conv2d(channels, first.out_channels, bias=bias, **options))
    return network


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
