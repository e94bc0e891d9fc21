"""Files of weights in the containers that people publish, read without ever running code from them."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from kd.errors import InputError

WRAPPERS = ("state_dict", "model", "model_state_dict", "student", "net")
PREFIXES = ("module.", "_orig_mod.", "student.", "model.", "net.", "network.")

# What training scripts put beside the weights: their options and a score. None of these runs anything.
_numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
_scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *_numbers,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


class Weights(NamedTuple):
    """A state dict, the wrappers it was found under, and what the file says of itself (``name``, ``mean``, ``std``)."""

    state: dict[str, Tensor]
    wrappers: tuple[str, ...] = ()
    about: dict[str, Any] = {}


def located(path: str | Path) -> Path:
    """The file that ``path`` means; a run folder stands for its ``student.safetensors``.

    Raises:
        InputError: a URL, nothing there, or a folder without a student.
    """
    if "://" in str(path) or str(path).startswith("file:"):
        raise InputError(f"{path} is a URL; weights are read from local files only: download it and give its path")
    path = Path(path).expanduser()
    if path.is_dir() and not (path / "student.safetensors").is_file():
        raise InputError(f"{path} is a folder without student.safetensors: give a run folder or a file of weights")
    path = path / "student.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no weights at {path}: give a run folder, .safetensors, .pth or .ckpt file")
    return path


def read(path: str | Path) -> Weights:
    """The weights in a ``.safetensors`` file, or in anything that ``torch.load(weights_only=True)`` takes.

    Dictionaries under ``state_dict``, ``model``, ``model_state_dict``, ``student`` or ``net`` are unwrapped: the
    containers of Lightning, RepDistiller, mdistiller, torchdistill, torchvision and timm.

    Raises:
        InputError: no such file, a URL, no plain weights in it, numbers that are not finite, or a run folder whose
            weights are not those that the run wrote.
    """
    given, path = Path(path).expanduser(), located(path)
    content, about = _content(path)
    wrappers = []
    while not _is_state(content):
        key = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
        if key is None:
            raise InputError(f"{path} holds no state dict of tensors{_held(content)}")
        content = content[key]
        wrappers.append(key)
    for key, value in content.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{path}: {key} holds numbers that are not finite; these weights cannot be used")
    if given.is_dir() and (recorded := _recorded(given)) not in (None, found := sha256_of(content)):
        raise InputError(f"{path} is not what the run wrote: its sha256 is {found}, summary.json says {recorded}")
    return Weights(content, tuple(wrappers), about)


def sha256_of(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names and bytes of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _recorded(folder: Path) -> str | None:
    """The sha256 of the student that a run folder's summary tells, if there is one that does."""
    try:
        return json.loads((folder / "summary.json").read_text())["student"].get("sha256")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def without_prefix(weights: Weights, known: Iterable[str]) -> Weights:
    """The weights under the keys that a network knows: ``module.`` and the like before every key is taken off.

    Of a file that also holds other modules (a distiller's) only what lies under ``student.`` is kept.
    """
    state, wrappers, own = weights.state, list(weights.wrappers), set(known)
    while state and not own & set(state):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None and any(key.startswith("student.") for key in state):
            prefix = "student."
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        wrappers.append(prefix)
    return weights._replace(state=state, wrappers=tuple(wrappers))


def _content(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # what is no file of weights may trip its readers anywhere
        raise InputError(f"{path} {_trouble(path, error)}") from error


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return state, {key: _json(text) for key, text in (file.metadata() or {}).items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _trouble(path: Path, error: BaseException) -> str:
    """What is wrong with a file that cannot be read, in words."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        return "is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a file of weights; was the download refused?"
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return (
            "holds Python objects beside tensors, which could run code, so it is not opened; "
            "where it comes from, save plain weights: torch.save(model.state_dict(), file)"
        )
    return f"is damaged, cut off, or no file of weights ({type(error).__name__})"


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _held(content: Any) -> str:
    if isinstance(content, dict):
        return f", but {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return f", but a {type(content).__name__}"
