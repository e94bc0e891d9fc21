"""The newest intact checkpoint of a run folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from kd.errors import InputError
from kd.run_folder import integrity
from kd.run_folder.layout import CHECKPOINTS

log = logging.getLogger(__name__)

FORMAT = 1
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class Saved(NamedTuple):
    """A checkpoint's file and content."""

    path: Path
    content: dict[str, Any]


def resumable(folder: Path) -> list[Path]:
    """The checkpoint files of a run folder that a run may be resumed from, the newest first; they are not read."""
    return [path for name in (LAST, PREVIOUS) if (path := folder / CHECKPOINTS / name).is_file()]


def latest(folder: Path) -> Saved | None:
    """The newest intact checkpoint of a run folder; None if there is no checkpoint.

    Raises:
        InputError: none can be read, or it was not written by kd, or by a later version of kd.
    """
    paths = resumable(folder)
    for path in paths:
        try:
            content = integrity.read(path)
        except integrity.Damaged as error:
            log.warning("%s; falling back to the previous checkpoint", error)
            continue
        metadata = content.get("kd") if isinstance(content, dict) else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("format_version"), int):
            raise InputError(f"{path} is not a checkpoint of a run of kd, so training cannot be resumed from it")
        if metadata["format_version"] > FORMAT:
            raise InputError(f"{path} has format {metadata['format_version']}, written by a later version of kd")
        return Saved(path, content)
    if paths:
        raise InputError(f"{paths[0]} is damaged or truncated, and there is no other intact checkpoint beside it")
    return None
