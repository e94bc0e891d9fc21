"""Weights into and out of networks, and what a network is prepared with."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialise
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.files import write_bytes
from kd.models.keys import complaint, is_stranger, without_prefix
from kd.models.normalized import InputSpec, Normalized
from kd.models.weight_files import Weights, read, sha256_of

log = logging.getLogger(__name__)


def load_into(network: nn.Module, path: str | Path, head: str | None = None, key: str | None = None) -> Weights:
    """Loads a file's weights strictly, and says which wrappers it took off and what it left out.

    With ``head="new"`` the network's classifier stays as it is, and the file's, of whatever shape, is left out. ``key``
    chooses among several weights in the file: see :func:`kd.models.weight_files.read`.

    Raises:
        InputError: no plain weights; keys missing, too many, or of another shape or type: the first of them are named.
    """
    weights = fill(network, read(path, key), str(path), head)
    if weights.wrappers:
        log.info("weights: %s, found under %s", path, ", ".join(map(repr, weights.wrappers)))
    return weights


def fill(network: nn.Module, weights: Weights, source: str, head: str | None = None) -> Weights:
    """Fills a network with weights, under the names that it knows; ``source`` is what messages call them.

    Raises:
        InputError: as :func:`load_into`.
    """
    whole = network.state_dict()
    left = tuple(f"{name}." for name in classifier_names(network)) if head == "new" else ()
    weights = without_prefix(weights, [name for name in whole if not left or not name.startswith(left)])
    own, state = (
        {name: t for name, t in part.items() if not left or not name.startswith(left)}
        for part in (whole, weights.state)
    )
    strangers = [name for name in state if name not in own and is_stranger(name)]
    state = {name: tensor for name, tensor in state.items() if name not in strangers}
    if said := complaint(state, own):
        trained = f"; it was saved from {weights.about['name']}" if "name" in weights.about else ""
        raise InputError(f"{source} does not fit {type(network).__name__}: {said}{trained}")
    for name, value in state.items():  # a mask of a network's own may be infinite
        if value.is_floating_point() and not value.isfinite().all() and own[name].isfinite().all():
            raise InputError(f"{source}: {name} holds numbers that are not finite; these weights cannot be used")
    network.load_state_dict(_versioned({**whole, **state}, whole, weights))
    if strangers:
        log.info("weights: %s, without %s, which are no weights of the network", source, ", ".join(strangers[:3]))
    return weights


def _versioned(state: dict[str, Tensor], whole: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """A state dict with torch's metadata on versions, without which some modules refuse it: the file's or the
    network's."""
    versions = getattr(weights.state, "_metadata", None) or getattr(whole, "_metadata", None)
    ordered: dict[str, Tensor] = OrderedDict(state)
    if versions is not None:
        ordered._metadata = versions  # type: ignore[attr-defined]
    return ordered


def prepare(
    network: nn.Module,
    data_mean: Sequence[float],
    data_std: Sequence[float],
    checkpoint: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    size: int | None = None,
    head: str | None = None,
    freeze: str | None = None,
    output: Any = None,
    checkpoint_key: str | None = None,
) -> Normalized:
    """Loads weights, if a file is named, and puts what the network expects of its pixels in front of it.

    Normalisation and size are, in this order: those asked for (``mean``, ``std``, ``size``), those that the file of
    weights or the network's library states, and the data's. ``head=new`` leaves the file's classifier out, which may
    know other classes; ``freeze=backbone`` lets nothing but the classifier train: a linear probe. ``output`` names the
    logits in what the network gives, ``checkpoint_key`` the weights in a file that holds several.

    Raises:
        InputError: weights that do not fit, another word than these for ``head`` and ``freeze``, or a
            ``checkpoint_key`` without a ``checkpoint``.
    """
    for key, value, known in (("head", head, "new"), ("freeze", freeze, "backbone")):
        if value not in (known, None):
            raise unknown(key, str(value), (known, "null"))
    if checkpoint_key is not None and checkpoint is None:
        raise InputError(f"checkpoint_key={checkpoint_key} is of a file, but there is no checkpoint")
    loaded = Weights({}) if checkpoint is None else load_into(network, checkpoint, head, checkpoint_key)
    pixels = pixels_of(network, loaded)
    channels = len(data_mean)
    front = mean or _fitted(pixels.mean, channels) or data_mean, std or _fitted(pixels.std, channels) or data_std
    fitted = Normalized(network, *front, size or pixels.size, output)
    if freeze == "backbone":
        fitted.freeze(classifier_names(network))
    return fitted


def classifier_names(network: nn.Module) -> list[str]:
    """The names of a network's classifier, of both where it has two: what its ``get_classifier`` gives, else the last
    linear layer.

    Raises:
        InputError: there is none.
    """
    stated: Any = getattr(network, "get_classifier", None)
    known = stated() if stated is not None else None
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    given = known if isinstance(known, tuple) else (known,)
    names = [name for name, module in layers if any(module is one for one in given)]
    if not names and not layers:
        raise InputError(f"{type(network).__name__} has no linear layer that could be its classifier")
    return names or [layers[-1][0]]


def pixels_of(network: nn.Module, weights: Weights) -> InputSpec:
    """What the file of weights, else the network's library, states of the pixels."""
    stated = {key: weights.about[key] for key in InputSpec._fields if weights.about.get(key)}
    return InputSpec(**stated) if stated else getattr(network, "pixels", InputSpec())


def _fitted(values: Sequence[float] | None, channels: int) -> Sequence[float] | None:
    """Statistics per channel for another count of channels: the mean of them."""
    if values is None or len(values) == channels:
        return values
    return [sum(values) / len(values)] * channels


def outputs_of(network: nn.Module, checkpoint: str | Path, key: str | None = None) -> int | None:
    """How many classes the weights in a file know: what its classifier gives, else the length of its last tensor."""
    own = list(network.state_dict())
    state = without_prefix(read(checkpoint, key), own).state
    linear = any(isinstance(module, nn.Linear) for module in network.modules())
    heads = [f"{name}.weight" for name in classifier_names(network)] if linear else []
    found = [state[name] for name in (*heads, *reversed(own)) if name in state and state[name].ndim]
    return len(found[0]) if found else None


def save(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes the bare state dict as safetensors, whole or not at all."""
    save_tensors(network.state_dict(), path, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors by name as safetensors, whole or not at all."""
    write_bytes(path, serialised(tensors, metadata))


def serialised(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors by name as safetensors; those that share memory each have their own there."""
    held = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return serialise(held, metadata=metadata)


def fingerprint(network: nn.Module) -> str:
    """sha256 over the names and bytes of the state dict."""
    return sha256_of(network.state_dict())
