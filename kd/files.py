"""Files: written whole or not at all, and named as the user would type them."""

from __future__ import annotations

import os
from pathlib import Path

from kd.errors import NO_SPACE, TrainingFailed


def relative(folder: Path) -> Path:
    """The folder as the user would type it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        TrainingFailed: no space, or another fault of the disk.
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
