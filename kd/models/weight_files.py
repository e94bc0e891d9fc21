"""Weights files in published containers, read without running code from them."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from kd.errors import InputError, unknown
from kd.models.file_kinds import describe_fault

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model", "model_state_dict", "student", "net")
FILES = ("student.safetensors", "model.safetensors", "pytorch_model.bin")  # of a run folder and of Hugging Face's
DEPTH = 6  # of containers in each other

# What training scripts store with the weights: their options and a score. None of these runs code.
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
    """A state dict, the keys that contained it, and the file's metadata (``name``, ``mean``, ``std``)."""

    state: dict[str, Tensor]
    wrappers: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}


def located(path: str | Path) -> Path:
    """The weights file at ``path``: of a run folder its ``student.safetensors``, of a Hugging Face folder its
    ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        InputError: a URL, nothing there, or a folder without such a file.
    """
    if "://" in str(path) or str(path).startswith("file:"):
        raise InputError(f"{path} is a URL; weights are read from local files only: download it and give its path")
    path = Path(path).expanduser()
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
        if not files:
            raise InputError(f"{path} is a folder without {', '.join(FILES[:-1])} or {FILES[-1]}{_listed(path)}")
        path = files[0]
    if not path.is_file():
        raise InputError(f"no weights at {path}: give a run folder, .safetensors, .pth or .ckpt file")
    return path


def _listed(folder: Path) -> str:
    """The files of a folder, for messages."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f": set the path of the weights file; available: {', '.join(names[:5])}" if names else ": it is empty"


def read(path: str | Path, key: str | None = None) -> Weights:
    """The weights in a ``.safetensors`` file, or in anything that ``torch.load(weights_only=True)`` accepts.

    Dictionaries under ``state_dict``, ``model``, ``model_state_dict``, ``student`` or ``net`` are unwrapped: the
    containers of Lightning, RepDistiller, mdistiller, torchdistill, torchvision and timm. ``key`` selects the weights
    under another key, dotted where containers are nested (``ema.module``), or under a prefix of their own names.

    Raises:
        InputError: no such file, a URL, no plain weights in it, or a run folder whose
            weights are not those that the run wrote.
    """
    requested, path = Path(path).expanduser(), located(path)
    content, metadata = _content(path)
    wrappers, state = _unwrapped(content, path) if key is None else _under(content, key, path)
    if (
        requested.is_dir()
        and path.name == FILES[0]
        and (recorded := _recorded(requested)) not in (None, actual := sha256_of(state))
    ):
        raise InputError(f"{path} is not what the run wrote: its sha256 is {actual}, in summary.json {recorded}")
    return Weights(state, tuple(wrappers), metadata)


def _unwrapped(content: Any, path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """The weights in known containers, with their keys."""
    outer, wrappers = content, list[str]()
    while True:
        key = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
        if key is None or len(wrappers) > DEPTH:
            break
        content = content[key]
        wrappers.append(key)
    others = _candidates(outer)
    if not _is_state(content) or len(wrappers) > DEPTH:
        hint = f"; set checkpoint_key={next(iter(others))}" if others else ""
        raise InputError(f"{path} contains no state dict of tensors{_held(outer)}{hint}")
    state, chosen = _tensors(content), ".".join(wrappers)
    if similar := [name for name, each in others.items() if name != chosen and 2 * len(each) >= len(state)]:
        log.info(
            "weights: %s contains several; using %s; set checkpoint_key=%s to use %s",
            *(path, repr(chosen) if chosen else "those at its top level", similar[0], " or ".join(map(repr, similar))),
        )
    return wrappers, state


def _under(content: Any, key: str, path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """The weights under one key of a file, or under a prefix of its weights' names."""
    candidates = _candidates(content)
    if key in candidates:
        return [key], _tensors(candidates[key])
    prefix = key if key.endswith(".") else f"{key}."
    for inner in (content, *(candidates.values())):
        if isinstance(inner, Mapping) and any(str(name).startswith(prefix) for name in inner):
            named = {name: value for name, value in _tensors(inner).items() if name.startswith(prefix)}
            return [prefix], {name.removeprefix(prefix): value for name, value in named.items()}
    raise InputError(f"{path}: {unknown('checkpoint_key', key, candidates)}")


def _candidates(
    content: Any, depth: int = DEPTH, visited: frozenset[int] = frozenset()
) -> dict[str, Mapping[str, Any]]:
    """All possible weights in a file: dictionaries of tensors by dotted key, without an optimiser's."""
    if id(content) in visited:
        return {}
    visited |= {id(content)}
    listed = dict(enumerate(content)) if isinstance(content, (list, tuple)) else content
    candidates: dict[str, Mapping[str, Any]] = {}
    for key, value in listed.items() if isinstance(listed, Mapping) and depth else ():
        key = str(key) if listed is not content else key
        if not isinstance(key, str) or key.startswith("optim") or not isinstance(value, (Mapping, list, tuple)):
            continue
        if isinstance(value, Mapping) and _is_state(value):
            candidates[key] = value
        else:
            candidates |= {f"{key}.{name}": state for name, state in _candidates(value, depth - 1, visited).items()}
    return candidates


def sha256_of(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names and bytes of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _recorded(folder: Path) -> str | None:
    """The student's sha256 in a run folder's summary, if there is one."""
    try:
        return json.loads((folder / "summary.json").read_text())["student"].get("sha256")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _content(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a TorchScript archive torch raises as well
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # other files may raise anything in the readers
        raise InputError(f"{path} {describe_fault(path, error)}") from error


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return state, {key: _json(text) for key, text in (file.metadata() or {}).items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_state(content: Any) -> bool:
    """Whether it is a dictionary of tensors; a few numbers, such as an epoch, are allowed, containers are not."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    others = [value for key, value in content.items() if not isinstance(value, Tensor) and "extra_state" not in key]
    if any(isinstance(value, (Mapping, list, tuple)) for value in others):
        return False
    return any(value.ndim for value in _tensors(content).values()) and 2 * len(others) < len(content)


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, with torch's metadata on the versions of modules where there is any."""
    state: dict[str, Tensor] = OrderedDict((key, value) for key, value in content.items() if isinstance(value, Tensor))
    if (versions := getattr(content, "_metadata", None)) is not None:
        state._metadata = versions  # type: ignore[attr-defined]
    return state


def _held(content: Any) -> str:
    if isinstance(content, dict):
        return f", but {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return f", but a {type(content).__name__}"
