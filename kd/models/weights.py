"""Loads and saves weights, and prepares networks for the data."""

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
from kd.models.keys import is_foreign, mismatch, without_prefix
from kd.models.normalized import InputSpec, Normalized
from kd.models.weight_files import Weights, read, sha256_of

log = logging.getLogger(__name__)


def load_into(network: nn.Module, path: str | Path, head: str | None = None, key: str | None = None) -> Weights:
    """Loads a file's weights strictly, and logs which prefixes were removed and what was skipped.

        With ``head="new"`` the network's classifier is not changed, and the file's, of any shape, is skipped. ``key``
    selects among several weights in the file: see :func:`kd.models.weight_files.read`.

    Raises:
        InputError: no plain weights; missing or unexpected keys, or another shape or type; the first ones are named.
    """
    weights = fill(network, read(path, key), str(path), head)
    if weights.wrappers:
        log.info("weights: %s, under the keys %s", path, ", ".join(map(repr, weights.wrappers)))
    return weights


def fill(network: nn.Module, weights: Weights, source: str, head: str | None = None) -> Weights:
    """Fills a network with weights, matched to its own keys; ``source`` is their name in messages.

    Raises:
        InputError: as :func:`load_into`.
    """
    whole = network.state_dict()
    excluded = tuple(f"{name}." for name in classifier_names(network)) if head == "new" else ()
    weights = without_prefix(weights, [name for name in whole if not excluded or not name.startswith(excluded)])
    expected, state = (
        {name: t for name, t in part.items() if not excluded or not name.startswith(excluded)}
        for part in (whole, weights.state)
    )
    strangers = [name for name in state if name not in expected and is_foreign(name)]
    state = {name: tensor for name, tensor in state.items() if name not in strangers}
    if problem := mismatch(state, expected):
        trained = f"; it was saved from {weights.metadata['name']}" if "name" in weights.metadata else ""
        raise InputError(f"{source} does not fit {type(network).__name__}: {problem}{trained}")
    for name, value in state.items():  # a network's own mask may be infinite
        if value.is_floating_point() and not value.isfinite().all() and expected[name].isfinite().all():
            raise InputError(f"{source}: {name} contains values that are not finite")
    network.load_state_dict(_versioned({**whole, **state}, whole, weights))
    if strangers:
        log.info("weights: %s, without %s, which the network does not have", source, ", ".join(strangers[:3]))
    return weights


def _versioned(state: dict[str, Tensor], whole: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """A state dict with torch's metadata on versions, which some modules require: the file's or the network's."""
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
    """Loads weights, if ``checkpoint`` is set, and adds the normalisation that the network expects.

    Normalisation and size are, in this order: the arguments ``mean``, ``std`` and ``size``, those stated by the weights
    file or the network's library, and the data's. ``head=new`` skips the file's classifier, which may have other
    classes; ``freeze=backbone`` trains only the classifier: a linear probe. ``output`` selects the logits among several
    outputs, ``checkpoint_key`` the weights in a file that contains several.

    Raises:
        InputError: weights that do not fit, another value of ``head`` or ``freeze``, or a
            ``checkpoint_key`` without a ``checkpoint``.
    """
    for key, value, allowed in (("head", head, "new"), ("freeze", freeze, "backbone")):
        if value not in (allowed, None):
            raise unknown(key, str(value), (allowed, "null"))
    if checkpoint_key is not None and checkpoint is None:
        raise InputError(f"checkpoint_key={checkpoint_key} selects weights in a file, but checkpoint is not set")
    loaded = Weights({}) if checkpoint is None else load_into(network, checkpoint, head, checkpoint_key)
    pixels = pixels_of(network, loaded)
    channels = len(data_mean)
    front = mean or _fitted(pixels.mean, channels) or data_mean, std or _fitted(pixels.std, channels) or data_std
    fitted = Normalized(network, *front, size or pixels.size, output)
    if freeze == "backbone":
        fitted.freeze(classifier_names(network))
    return fitted


def classifier_names(network: nn.Module) -> list[str]:
    """The names of a network's classifier, or of both if it has two: ``get_classifier()``, else the last linear layer.

    Raises:
        InputError: there is none.
    """
    stated: Any = getattr(network, "get_classifier", None)
    classifier = stated() if stated is not None else None
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    modules = classifier if isinstance(classifier, tuple) else (classifier,)
    names = [name for name, module in layers if any(module is one for one in modules)]
    if not names and not layers:
        raise InputError(f"{type(network).__name__} has no linear layer that could be its classifier")
    return names or [layers[-1][0]]


def pixels_of(network: nn.Module, weights: Weights) -> InputSpec:
    """The input specification stated by the weights file, else by the network's library."""
    stated = {key: weights.metadata[key] for key in InputSpec._fields if weights.metadata.get(key)}
    return InputSpec(**stated) if stated else getattr(network, "pixels", InputSpec())


def _fitted(values: Sequence[float] | None, channels: int) -> Sequence[float] | None:
    """Statistics per channel; for another number of channels, their mean."""
    if values is None or len(values) == channels:
        return values
    return [sum(values) / len(values)] * channels


def outputs_of(network: nn.Module, checkpoint: str | Path, key: str | None = None) -> int | None:
    """The number of classes of the weights in a file: its classifier's outputs, else the length of its last tensor."""
    names = list(network.state_dict())
    state = without_prefix(read(checkpoint, key), names).state
    linear = any(isinstance(module, nn.Linear) for module in network.modules())
    heads = [f"{name}.weight" for name in classifier_names(network)] if linear else []
    tensors = [state[name] for name in (*heads, *reversed(names)) if name in state and state[name].ndim]
    return len(tensors[0]) if tensors else None


def save(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes the state dict as safetensors, atomically."""
    save_tensors(network.state_dict(), path, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors by name as safetensors, atomically."""
    write_bytes(path, serialised(tensors, metadata))


def serialised(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors by name as safetensors; shared memory is copied."""
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return serialise(copies, metadata=metadata)


def fingerprint(network: nn.Module) -> str:
    """sha256 over the names and bytes of the state dict."""
    return sha256_of(network.state_dict())
