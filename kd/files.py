"""Files: atomic writes, and paths as the user would type them."""

from __future__ import annotations

import os
from pathlib import Path

from kd.errors import NO_SPACE, TrainingFailed


def relative(folder: Path) -> Path:
    """The folder relative to the working directory, if it lies inside it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
        TrainingFailed: no space left on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in NO_SPACE:
            raise
        raise TrainingFailed(f"{path} cannot be written: {os.strerror(error.errno)}") from error
