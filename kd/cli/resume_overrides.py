"""The overrides next to ``resume=``: the run folder it names, and the options that are changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.errors import InputError
from kd.registry import nested

RESUME = ("resume", "resume_data", "trust")
RUN_OPTIONS = ("callbacks.", "logger.", "trainer.", "data.", "student.", "teacher.", "objective.", "optim.")


def allow_run_options(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line; with ``resume=``, overrides may set options that the defaults lack.

    A run may have callbacks or data options of its own. ``++`` makes Hydra accept their keys.
    """
    if not any(argument.startswith("resume=") for argument in arguments):
        return list(arguments)
    return [_with_double_plus(argument) for argument in arguments]


def _with_double_plus(argument: str) -> str:
    name, equals, value = argument.lstrip("+~").partition("=")
    if not name.startswith(RUN_OPTIONS):
        return argument
    return f"++{name}=null" if argument.startswith("~") else f"++{name}{equals}{value}"


def resume_folder(config: Mapping[str, Any], overrides: Sequence[Any]) -> str | None:
    """The folder to resume, as typed: ``1e3`` and ``true``, which Hydra parses as other types, are names too.

    Args:
        config: the composed configuration.
        overrides: as parsed by Hydra.

    Raises:
        InputError: an empty name, or ``null`` if a folder of that name exists.
    """
    for override in overrides:
        if override.key_or_group != "resume" or isinstance(override.value(), str):
            continue
        typed = (override.input_line or "").partition("=")[2].strip()
        if override.value() is not None:
            return typed
        if typed and Path(typed).is_dir():
            raise InputError(f"resume={typed} names no run; for the folder of that name, set resume=./{typed}")
    if config["resume"] == "":
        raise InputError("resume= names no run folder; set resume=RUN to resume the run in the folder RUN")
    return config["resume"]


def changed_options(config: Mapping[str, Any], overrides: Sequence[Any]) -> dict[str, Any]:
    """The options typed next to ``resume=``, dotted key to value; with a recipe, the whole configuration.

    Arguments as :func:`resume_folder`.
    """
    typed: dict[str, Any] = {}
    for override in overrides:
        name = override.key_or_group.replace("/", ".")
        if name in RESUME:
            continue
        if name.partition(".")[0] not in config:  # an experiment, for example, which sets many keys
            return {key: value for key, value in config.items() if key not in (*RESUME, "cell")}
        typed[name] = nested.get(config, name)
    return typed
