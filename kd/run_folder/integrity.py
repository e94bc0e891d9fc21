"""Checkpoints that are what a run wrote: whole to the last bit, and of this run's configuration."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd.distill.identity import Config, check_run
from kd.errors import InputError

SHA256 = "sha256"


class Damaged(InputError):
    """A checkpoint whose content is not what was written."""


def sealed(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with the sha256 of its content, which takes about a second for each gigabyte."""
    return {**checkpoint, "kd": {**checkpoint.get("kd", {}), SHA256: sha256_of(checkpoint)}}


def read(path: Path, map_location: Any = "cpu") -> Any:
    """A checkpoint's content: tensors and plain containers, and nothing that could run.

    Raises:
        Damaged: it is cut off, or some bits of it are not those that were written.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch writes the checksum of each part and does not look at it
            if (part := file.testzip()) is not None:
                raise Damaged(f"{path} is damaged: {part} is not as it was written")
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Damaged:
        raise
    except Exception as error:  # a torn file may trip its reader anywhere
        raise Damaged(f"{path} is damaged or cut off ({type(error).__name__})") from error
    about = content.get("kd") if isinstance(content, dict) else None
    written = about.get(SHA256) if isinstance(about, Mapping) else None  # absent before it was kept
    if written is not None and written != sha256_of(content):
        raise Damaged(f"{path} is damaged: the sha256 of its content is not the one that was written with it")
    return content


def check(path: Path, content: Any, config: Config, files: Mapping[str, str]) -> None:
    """Whether a checkpoint is of a run of this configuration.

    Args:
        path: for messages.
        content: what it holds.
        config: the run's.
        files: the weights that the run begins from, as :func:`kd.distill.identity.files_of` has them.

    Raises:
        InputError: it is of another run; what differs is named.
    """
    known = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    known = known if isinstance(known, Mapping) else {}
    check_run(config, known.get("config"), path)
    before, now = ((each or {}).get("student.checkpoint") for each in (known.get("files"), files))
    if before is not None and before != now:
        raise InputError(f"{path} is of a run that began from other weights than student.checkpoint holds now")


def sha256_of(checkpoint: Mapping[str, Any]) -> str:
    """sha256 of a checkpoint's tensors, numbers and words, but for what kd says of it."""
    digest = hashlib.sha256()
    for part in _parts({key: value for key, value in checkpoint.items() if key != "kd"}):
        digest.update(part)
    return digest.hexdigest()


def _parts(node: Any) -> Iterator[Any]:
    if isinstance(node, Tensor):
        yield f"{node.dtype}{list(node.shape)}".encode()
        yield node.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{key!r}:".encode()
            yield from _parts(value)
        yield b"}"
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _parts(value)
        yield b"]"
    else:
        yield f"{node!r},".encode()
