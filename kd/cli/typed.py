"""What a command line says beside ``resume=``: which folder it means, and which options it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.errors import InputError
from kd.registry import value_at

RESUME = ("resume", "resume_data", "trust")
ADDED = ("callbacks.", "logger.", "trainer.", "data.", "student.", "teacher.", "objective.", "optim.")


def added(words: Sequence[str]) -> list[str]:
    """The words of a command line, in which an option beside ``resume=`` need not be one of a new run.

    The callbacks and the data of a run, say, are its own; ``++`` lets Hydra take what the defaults do not have.
    """
    return [_added(word) for word in words] if any(word.startswith("resume=") for word in words) else list(words)


def _added(word: str) -> str:
    name, equals, value = word.lstrip("+~").partition("=")
    if not name.startswith(ADDED):
        return word
    return f"++{name}=null" if word.startswith("~") else f"++{name}{equals}{value}"


def resume_of(given: Mapping[str, Any], overrides: Sequence[Any]) -> str | None:
    """The folder to resume as it was typed: ``1e3`` and ``true``, which Hydra takes for other things, are names too.

    Args:
        given: the composed configuration.
        overrides: as Hydra's parser gives them.

    Raises:
        InputError: an empty name, or ``null`` where there is such a folder.
    """
    for word in overrides:
        if word.key_or_group != "resume" or isinstance(word.value(), str):
            continue
        typed = (word.input_line or "").partition("=")[2].strip()
        if word.value() is not None:
            return typed
        if typed and Path(typed).is_dir():
            raise InputError(f"resume={typed} is no run to resume; the folder of that name is resume=./{typed}")
    if given["resume"] == "":
        raise InputError("resume= names no run folder; resume=RUN resumes the run in the folder RUN")
    return given["resume"]


def typed_of(given: Mapping[str, Any], overrides: Sequence[Any]) -> dict[str, Any]:
    """What is typed beside ``resume=``, dotted key to value; of a recipe, all of it. Arguments as :func:`resume_of`."""
    typed: dict[str, Any] = {}
    for override in overrides:
        name = override.key_or_group.replace("/", ".")
        if name in RESUME:
            continue
        if name.partition(".")[0] not in given:  # an experiment, say, which speaks for many keys
            return {key: value for key, value in given.items() if key not in (*RESUME, "cell")}
        typed[name] = value_at(given, name)
    return typed
