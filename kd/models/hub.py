"""Networks of torchvision, timm and any import path, adapted to the data.

The number of classes is set by the library itself, or, with weights for another number of classes, by a new last
layer; that of input channels by a new first convolution, which keeps the mean of pre-trained filters. Pre-trained
weights come with the mean, std and size that they expect (``network.pixels``).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from kd.errors import InputError, unknown
from kd.models.normalized import InputSpec
from kd.models.weight_files import read
from kd.registry import check_maker, models, parameters, unnamed

STEMS = ("own", "cifar")


@models.register("torchvision")
def torchvision(name: str, classes: int, channels: int = 3, weights: str | None = None, stem: str = "own") -> nn.Module:
    """A torchvision classification model, ``name`` as in ``torchvision.models.list_models()``.

    ``weights`` is a name such as ``DEFAULT`` or ``IMAGENET1K_V1`` and needs the internet on first use. ``stem=cifar``
    makes the first convolution 3x3 with stride 1 and removes the pooling after it, for small images.

    Raises:
        InputError: an unknown name, weights or stem, or weights that cannot be fetched.
    """
    from torchvision import models as library

    names = library.list_models(module=library)
    if name not in names:
        raise unknown("torchvision model", name, names)
    if weights is None:
        network = library.get_model(name, num_classes=classes)
    else:
        choices = library.get_model_weights(name).__members__
        if weights not in choices:
            raise unknown(f"weights of {name}", weights, choices)
        network = library.get_model(name, weights=None, num_classes=len(choices[weights].meta["categories"]))
        network.load_state_dict(read(_fetched(choices[weights].url)).state)
        preset = choices[weights].transforms()
        network.pixels = InputSpec(preset.mean, preset.std, preset.crop_size[0])
    return _with_stem(_fit_channels(_fit_classes(network, classes), channels), stem)


@models.register("timm")
def timm(
    name: str,
    classes: int,
    channels: int = 3,
    pretrained: bool = False,
    stem: str = "own",
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A timm model, ``name`` as in ``timm.list_models()``; ``pretrained`` needs the internet on first use.

    ``options`` go to ``timm.create_model``: ``{img_size: 32, patch_size: 4}`` fits a vision transformer to small
    images; without it, images are resized to the one size that such a network accepts.

    Raises:
        InputError: timm is not installed, an unknown name or stem, wrong options, or weights that cannot be fetched.
    """
    try:
        library: Any = import_module("timm")
    except ImportError as error:
        raise InputError("timm is not installed: pip install 'kd-lightning[timm]'") from error
    if not library.is_model(name.split(".")[0]):
        raise unknown("timm model", name, library.list_models())
    options = options or {}
    try:
        with _without_retries() if pretrained else nullcontext():
            network = library.create_model(
                name, pretrained=pretrained, num_classes=classes, in_chans=channels, **options
            )
    except Exception as error:
        raise InputError(f"timm cannot build {name}: {str(error).splitlines()[0]}") from error
    stated = network.pretrained_cfg
    if pretrained:
        network.pixels = InputSpec(stated["mean"], stated["std"], stated["input_size"][-1])
        network.untrained_head = stated["num_classes"] != classes
    elif stated.get("fixed_input_size") and "img_size" not in options:
        network.pixels = InputSpec(size=stated["input_size"][-1])
    return _with_stem(network, stem)


@models.register("import", imports=True)
def import_path(path: str, classes: int, shape: Sequence[int]) -> nn.Module:
    """A custom network: ``path`` is ``package.module:function``.

    Of ``classes``, ``num_classes``, ``channels``, ``in_channels`` and ``shape`` (the images' [C, H, W]) the
    function receives those that it declares as parameters.

    Raises:
        InputError: the path cannot be imported, or does not give an ``nn.Module``.
    """
    module, _, attribute = path.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import {path!r} (write package.module:function): {error}") from error
    check_maker(function, path)
    offer, named = standard_arguments(classes, shape), parameters(function)
    try:
        network = function(**{key: offer[key] for key in named if key in offer})
    except KeyError as error:
        if named:
            raise
        raise unnamed(path, error) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{path} returned a {type(network).__name__}, not an nn.Module")
    return network


def standard_arguments(classes: int, shape: Sequence[int]) -> dict[str, Any]:
    """The arguments that kd passes to a model's function, under all names that libraries use for them."""
    channels = {"channels": shape[0], "in_channels": shape[0]}
    return {"classes": classes, "num_classes": classes, **channels, "shape": list(shape)}


@contextmanager
def _without_retries() -> Iterator[None]:
    """Uses only cached weights if Hugging Face cannot be reached, instead of retrying for a minute."""
    try:
        constants: Any = import_module("huggingface_hub.constants")
    except ImportError:
        yield
        return
    endpoint, before = urlsplit(constants.ENDPOINT), constants.HF_HUB_OFFLINE
    try:
        if not getproxies():
            port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
            socket.create_connection((endpoint.hostname, port), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _fetched(url: str) -> Path:
    """The weights file at a library's own URL, downloaded once into torch's cache and verified by its checksum."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = path.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{url} cannot be fetched: {error}; put the file at {path}") from error
    return path


def _fit_classes(network: nn.Module, classes: int) -> nn.Module:
    name, last = [(n, m) for n, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    if isinstance(last, nn.Linear) and last.out_features != classes:
        _replace(network, name, nn.Linear(last.in_features, classes, bias=last.bias is not None))
        network.untrained_head = True  # type: ignore[assignment]
    elif isinstance(last, nn.Conv2d) and last.out_channels != classes:  # squeezenet
        _replace(network, name, nn.Conv2d(last.in_channels, classes, last.kernel_size))  # type: ignore[arg-type]
        network.untrained_head = True  # type: ignore[assignment]
    return network


def _fit_channels(network: nn.Module, channels: int) -> nn.Module:
    name, first = _first_convolution(network)
    if first.in_channels != channels:
        fitted = _like(first, in_channels=channels)
        with torch.no_grad():
            fitted.weight.copy_(first.weight.sum(1, keepdim=True).expand_as(fitted.weight) / channels)
            if first.bias is not None and fitted.bias is not None:
                fitted.bias.copy_(first.bias)
        _replace(network, name, fitted)
    return network


def _with_stem(network: nn.Module, stem: str) -> nn.Module:
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    if stem == "cifar":
        name, first = _first_convolution(network)
        if first.stride == (1, 1) or first.kernel_size == first.stride:
            raise InputError(f"stem=cifar does not fit {type(network).__name__}: its stem is not a strided convolution")
        _replace(network, name, _like(first, kernel_size=3, stride=1, padding=1))
        if isinstance(getattr(network, "maxpool", None), nn.Module):
            network.maxpool = nn.Identity()
    return network


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    convolution = next(((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(network).__name__} has no convolution that could be adapted to the images")
    return convolution


def _like(first: nn.Conv2d, **changed: Any) -> nn.Conv2d:
    """A new convolution with another's options, some of them changed."""
    keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    options = {key: getattr(first, key) for key in keys} | changed
    return nn.Conv2d(bias=first.bias is not None, **options)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
