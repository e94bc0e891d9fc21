"""A run folder as teacher: its network and options are read from it; a different network is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd.distill.teacher_options import TeacherOptions
from kd.errors import InputError
from kd.models.names import name_of
from kd.models.weights import prepare
from kd.registry import check_registered, current, models, split
from kd.run_folder.layout import SUMMARY
from kd.run_folder.summary import read_summary, require

FROM_A_LIBRARY = {"weights": None, "pretrained": False}  # the weights come from the run folder


def network_of(run: str, trust: bool = False) -> dict[str, Any]:
    """The configuration node of a finished run's student, without options that download weights.

    Args:
        run: the folder. It is data: the class that it names must be registered with kd.
        trust: whether it may name any class.

    Raises:
        InputError: no finished run, or a class that is neither registered nor trusted.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise InputError(f"teacher={run} is neither a network nor a run folder; see kd-train --help")
    summary = read_summary(folder)
    require(summary, folder, "student.config")
    node = summary["student"]["config"]
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise InputError(f"{folder / SUMMARY} is damaged: student.config names no network")
    if not trust:
        check_registered(node, "teacher")
    output = summary["student"].get("output")
    selected = {"output": output} if output is not None and "output" not in node else {}
    return {**node, **selected, **{key: value for key, value in FROM_A_LIBRARY.items() if key in node}}


def check_network(node: Mapping[str, Any], key: str) -> None:
    """Checks that a teacher's node names the network in the run folder of its ``checkpoint``.

    Only networks registered with kd are checked; files and custom networks are recognised by their weights.

    Raises:
        InputError: another network, or other options; they are named.
    """
    checkpoint = str(node.get("checkpoint") or "")
    folder = Path(checkpoint).expanduser()
    if not checkpoint or not (folder / SUMMARY).is_file():
        return
    student = read_summary(folder).get("student")
    recorded = student.get("config") if isinstance(student, Mapping) else None
    if not isinstance(recorded, Mapping) or not all(
        models.is_registered(str(each.get("_target_"))) for each in (node, recorded)
    ):
        return
    name, other = name_of(node), name_of(recorded)
    if current(node["_target_"]) != current(recorded["_target_"]) or name != other:
        setting = f"teacher={name}" if key == "teacher" else f"{key} is {name}"
        raise InputError(f"{setting}, but {checkpoint} contains {other}; set teacher={checkpoint} to use that network")
    options = split(node, key, prepare, TeacherOptions)[0]
    for option in sorted(options.keys() & recorded.keys() - FROM_A_LIBRARY.keys()):
        if node[option] != recorded[option]:
            raise InputError(
                f"{key}.{option}={node[option]}, but {checkpoint} contains {other} with {option}={recorded[option]}"
            )
