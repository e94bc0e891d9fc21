"""Overrides that choose a run folder as teacher: expanded into its network and that network's options."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kd.errors import InputError
from kd.run_folder.from_run import network_of
from kd.run_folder.layout import SUMMARY

CHOICE = "from_run"  # in the group teacher: an empty node, filled by the overrides that follow
CHOOSING = ("teacher", "experiment", "sweep", "resume")  # keys that choose the teacher's network


def expand_teacher(
    override: str, key: str, value: str, overrides: Mapping[str, Any], choices: Collection[str]
) -> list[str]:
    """Replaces an override that names a run folder as teacher by overrides for the network in that run folder.

    ``teacher=RUN`` names one, and so does ``teacher.checkpoint=RUN`` if no other override chooses the network.

    Args:
        override: as typed.
        key: the key that it sets.
        value: the value it sets.
        overrides: all overrides of the command line, key to value.
        choices: the names in the group ``teacher``.

    Raises:
        InputError: no finished run, or a network in it that is not registered, without ``trust=true``.
    """
    folder, trust = Path(value).expanduser(), overrides.get("trust") is True
    if key == "teacher" and value not in choices and (folder.is_dir() or value.startswith(("/", "~", "."))):
        return [*_node_overrides(network_of(value, trust)), f"teacher.checkpoint={literal(value)}"]
    if (
        key == "teacher.checkpoint"
        and not any(choice in overrides for choice in CHOOSING)
        and (folder / SUMMARY).is_file()
    ):
        return [*_node_overrides(network_of(value, trust)), override]
    return [override]


def literal(value: Any) -> str:
    """A plain value in the grammar of Hydra's overrides.

    Raises:
        InputError: a key of a dictionary that the grammar cannot express.
    """
    if isinstance(value, str):
        # within quotes a backslash is literal, except before a quote
        return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, Mapping):
        if invalid := [key for key in value if not str(key).isidentifier()]:
            raise InputError(f"an option named {invalid[0]!r} cannot be taken from a run folder")
        return "{" + ",".join(f"{key}:{literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(literal, value))}]"
    return "null" if value is None else repr(value).lower()


def _node_overrides(node: Mapping[str, Any]) -> list[str]:
    if invalid := [key for key in node if not str(key).isidentifier()]:
        raise InputError(f"an option named {invalid[0]!r} cannot be taken from a run folder")
    return [f"teacher={CHOICE}", *(f"++teacher.{key}={literal(value)}" for key, value in node.items())]
