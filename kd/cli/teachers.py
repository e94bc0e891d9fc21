"""Words of the command line that stand for several: a run folder as teacher, with its network and options."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kd.errors import InputError
from kd.run_folder.from_run import network_of
from kd.run_folder.layout import SUMMARY

CHOICE = "from_run"  # of the group teacher: whatever the overrides after it say
CHOOSING = ("teacher", "experiment", "sweep", "resume")  # words that choose the teacher's network


def expanded(line: str, key: str, value: str, spoken: Mapping[str, Any], choices: Collection[str]) -> list[str]:
    """A word of the command line, with the network of the run folder that it names as teacher.

    ``teacher=RUN`` names one, and so does ``teacher.checkpoint=RUN`` where no word chooses another network.

    Args:
        line: the word.
        key: what it sets.
        value: to what.
        spoken: all words, key to value.
        choices: the names in the group ``teacher``.

    Raises:
        InputError: no finished run, or a network in it that is not registered, without ``trust=true``.
    """
    folder, trust = Path(value).expanduser(), spoken.get("trust") is True
    if key == "teacher" and value not in choices and (folder.is_dir() or value.startswith(("/", "~", "."))):
        return [*_words(network_of(value, trust)), f"teacher.checkpoint={literal(value)}"]
    if key == "teacher.checkpoint" and not any(word in spoken for word in CHOOSING) and (folder / SUMMARY).is_file():
        return [*_words(network_of(value, trust)), line]
    return [line]


def literal(value: Any) -> str:
    """A plain value as Hydra's overrides write it.

    Raises:
        InputError: a key of a dictionary that cannot be written there.
    """
    if isinstance(value, str):
        # in quotes a backslash is one, but before a quote
        return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, Mapping):
        if odd := [key for key in value if not str(key).isidentifier()]:
            raise InputError(f"an option named {odd[0]!r} cannot be taken from a run folder")
        return "{" + ",".join(f"{key}:{literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(literal, value))}]"
    return "null" if value is None else repr(value).lower()


def _words(node: Mapping[str, Any]) -> list[str]:
    if odd := [key for key in node if not str(key).isidentifier()]:
        raise InputError(f"an option named {odd[0]!r} cannot be taken from a run folder")
    return [f"teacher={CHOICE}", *(f"++teacher.{key}={literal(value)}" for key, value in node.items())]
