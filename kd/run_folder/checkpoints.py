"""The newest whole checkpoint of a run folder."""

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
    """A checkpoint's file and what it holds."""

    path: Path
    content: dict[str, Any]


def resumable(folder: Path) -> list[Path]:
    """The checkpoints of a run folder from which a run can be resumed, the newest first, whatever they hold."""
    return [path for name in (LAST, PREVIOUS) if (path := folder / CHECKPOINTS / name).is_file()]


def latest(folder: Path) -> Saved | None:
    """The newest whole checkpoint of a run folder; None if there never was one.

    Raises:
        InputError: none of those there can be read, or it is none of kd's, or of a later version of kd.
    """
    found = resumable(folder)
    for path in found:
        try:
            content = integrity.read(path)
        except integrity.Damaged as error:
            log.warning("%s; trying the one before", error)
            continue
        about = content.get("kd") if isinstance(content, dict) else None
        if not isinstance(about, dict) or not isinstance(about.get("format_version"), int):
            raise InputError(f"{path} is no checkpoint of a run of kd, so training cannot go on from it")
        if about["format_version"] > FORMAT:
            raise InputError(f"{path} has format {about['format_version']}, written by a later version of kd")
        return Saved(path, content)
    if found:
        raise InputError(f"{found[0]} is damaged or cut off, and there is no other whole checkpoint beside it")
    return None
