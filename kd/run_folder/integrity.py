"""Integrity of checkpoints: unchanged to the last bit, and of this run's configuration."""

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
    """A checkpoint whose content differs from what was written."""


def sealed(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with the sha256 of its content; about one second per gigabyte."""
    return {**checkpoint, "kd": {**checkpoint.get("kd", {}), SHA256: sha256_of(checkpoint)}}


def read(path: Path, map_location: Any = "cpu") -> Any:
    """A checkpoint's content: only tensors and plain containers, no code.

    Raises:
        Damaged: it is truncated, or its content has changed.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch writes a checksum of each part and does not verify it
            if (part := file.testzip()) is not None:
                raise Damaged(f"{path} is damaged: {part} has changed since it was written")
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Damaged:
        raise
    except Exception as error:  # a truncated file may fail anywhere in the reader
        raise Damaged(f"{path} is damaged or truncated ({type(error).__name__})") from error
    metadata = content.get("kd") if isinstance(content, dict) else None
    recorded = metadata.get(SHA256) if isinstance(metadata, Mapping) else None  # absent in early checkpoints
    if recorded is not None and recorded != sha256_of(content):
        raise Damaged(f"{path} is damaged: the sha256 of its content differs from the recorded one")
    return content


def check(path: Path, content: Any, config: Config, files: Mapping[str, str]) -> None:
    """Checks that a checkpoint belongs to a run of this configuration.

    Args:
        path: the file, for messages.
        content: its content.
        config: the configuration of the run.
        files: the digests of the initial weights, as returned by :func:`kd.distill.identity.files_of`.

    Raises:
        InputError: it belongs to another run; the difference is named.
    """
    recorded = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    recorded = recorded if isinstance(recorded, Mapping) else {}
    check_run(config, recorded.get("config"), path)
    before, now = ((each or {}).get("student.checkpoint") for each in (recorded.get("files"), files))
    if before is not None and before != now:
        raise InputError(f"{path} belongs to a run whose initial weights differ from those in student.checkpoint now")


def sha256_of(checkpoint: Mapping[str, Any]) -> str:
    """sha256 of a checkpoint's tensors, numbers and strings, without the entry ``kd``."""
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
