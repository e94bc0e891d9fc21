"""Weights from and to files: safetensors, or ``torch.load`` that never unpickles code."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd.errors import InputError
from kd.models.normalized import Normalized

WRAPPERS = ("state_dict", "model", "net")


def read(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: ``.safetensors``, or anything that ``torch.load(weights_only=True)`` takes.

    A dictionary under ``state_dict``, ``model`` or ``net`` is unwrapped, and so is a ``module.`` before every
    key. A run folder stands for its ``student.safetensors``.

    Raises:
        InputError: no such file, or no plain weights in it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "student.safetensors"
    if not path.is_file():
        raise InputError(f"no weights at {path}: give a .safetensors or .pth file, or a run folder")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path} holds no plain weights ({type(error).__name__})") from error
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of tensors")
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_into(network: nn.Module, path: str | Path) -> None:
    """Loads a file's weights strictly.

    Raises:
        InputError: keys missing, too many, or of another shape; the first of them are named.
    """
    state = read(path)
    own = network.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    for what, keys in (("missing", missing), ("unexpected", extra), ("of another shape", shapes)):
        if keys:
            raise InputError(f"{path} does not fit {type(network).__name__}: {len(keys)} {what}, first {keys[:3]}")
    network.load_state_dict(state)


def prepare(
    network: nn.Module,
    data_mean: Sequence[float],
    data_std: Sequence[float],
    checkpoint: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Normalized:
    """Loads weights, if a file is named, and puts the normalisation in front: the data's, unless it has its own."""
    if checkpoint is not None:
        load_into(network, checkpoint)
    return Normalized(network, mean or data_mean, std or data_std)


@dataclass(frozen=True)
class Origin:
    """Where a teacher comes from.

    ``checkpoint`` is a run folder or a file of weights. Without one the teacher is trained first, for
    ``epochs`` (the run's own ``epochs`` if None) with ``seed``, once, and kept for every later run. ``mean``
    and ``std`` replace the data's where the teacher expects others.
    """

    checkpoint: str | None = None
    epochs: int | None = None
    seed: int = 0
    mean: list[float] | None = None
    std: list[float] | None = None


def save(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes the bare state dict as safetensors, whole or not at all."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({key: value.clone() for key, value in state.items()}, temporary, metadata=metadata)
    os.replace(temporary, path)


def fingerprint(network: nn.Module) -> str:
    """sha256 over the names and bytes of the state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
