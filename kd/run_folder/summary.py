"""``summary.json`` and ``config.yaml``: writing and reading them, and checking for required keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kd.errors import InputError
from kd.files import write_text
from kd.registry import with_current
from kd.run_folder.layout import CONFIG, FORMAT, SUMMARY


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes ``summary.json``; its schema is in docs/run-folder.md."""
    write_text(folder / SUMMARY, json.dumps({"format_version": FORMAT, **summary}, indent=2) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads a run's ``summary.json``.

    Raises:
        InputError: no finished run in the folder, or one from a later version of kd.
    """
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not a finished run: {path.name} is missing or damaged") from error
    number = summary.get("format_version") if isinstance(summary, dict) else None
    if not isinstance(number, int):
        raise InputError(f"{folder} is not a finished run: {path.name} is missing or damaged")
    if number > FORMAT:
        raise InputError(f"{path} was written by a later version of kd")
    return summary


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a run's ``config.yaml``, with the dotted paths of earlier versions replaced by today's.

    Raises:
        InputError: the file is absent or damaged.
    """
    path = folder / CONFIG
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} is absent") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged")
    return with_current(config)


def is_tested(summary: Mapping[str, Any]) -> bool:
    """Whether a run has its test metrics, or no test set."""
    return summary["metrics"].get("test") is not None


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder has been trained and tested, according to its summary."""
    try:
        return (folder / SUMMARY).is_file() and is_tested(read_summary(folder))
    except (InputError, KeyError, TypeError, AttributeError):  # whatever reads it reports the error
        return True


def names_in(summary: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names that a run was trained on; None if its summary has none, as in early versions."""
    data = summary.get("data")
    names = data.get("names") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(names, list) or len(names) != data.get("classes"):
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def require(summary: Mapping[str, Any], folder: Path, *keys: str) -> None:
    """Checks that a summary, which anyone may have written, has ``part.key`` for each of ``keys``.

    Raises:
        InputError: a key is missing; it is named.
    """
    for key in keys:
        part, _, name = key.partition(".")
        if part not in summary or (name and not (isinstance(summary[part], dict) and name in summary[part])):
            raise InputError(f"{folder / SUMMARY} is damaged: it has no {key}")
