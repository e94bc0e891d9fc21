"""Atomic writes, and paths relative to the working directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd.errors import NO_SPACE, TrainingFailed


def relative(folder: Path) -> Path:
    """The folder relative to the working directory if it is inside it, else unchanged."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """The path of a temporary file next to ``path``, which replaces ``path`` at the end of the block.

    If the block raises, ``path`` is unchanged and the temporary file is deleted.

    Raises:
        TrainingFailed: no space left on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.errno not in NO_SPACE:
            raise
        raise TrainingFailed(f"{path} cannot be written: {os.strerror(error.errno)}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically; see :func:`atomic`."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically; see :func:`atomic`."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)
