"""A run folder as teacher: its network and options come out of it, and a choice of another network is refused."""

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

FROM_A_LIBRARY = {"weights": None, "pretrained": False}  # the run folder has weights of its own


def network_of(run: str, trust: bool = False) -> dict[str, Any]:
    """The configuration node of a finished run's student, without what fetches weights.

    Args:
        run: the folder. It is data: what it names must be registered with kd.
        trust: whether it may be any class.

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
    chosen = {"output": output} if output is not None and "output" not in node else {}
    return {**node, **chosen, **{key: value for key, value in FROM_A_LIBRARY.items() if key in node}}


def check_network(node: Mapping[str, Any], at: str) -> None:
    """Whether a teacher's node is of the network whose weights the run folder in its ``checkpoint`` holds.

    Only of networks that are registered with kd; files, and networks of the user's own, are known by their weights.

    Raises:
        InputError: another network, or other options; it is named.
    """
    checkpoint = str(node.get("checkpoint") or "")
    folder = Path(checkpoint).expanduser()
    if not checkpoint or not (folder / SUMMARY).is_file():
        return
    student = read_summary(folder).get("student")
    there = student.get("config") if isinstance(student, Mapping) else None
    if not isinstance(there, Mapping) or not all(
        models.is_registered(str(each.get("_target_"))) for each in (node, there)
    ):
        return
    mine, other = name_of(node), name_of(there)
    if current(node["_target_"]) != current(there["_target_"]) or mine != other:
        here = f"teacher={mine}" if at == "teacher" else f"{at} is {mine}"
        raise InputError(f"{here}, but {checkpoint} holds {other}; teacher={checkpoint} takes the network from there")
    options = split(node, at, prepare, TeacherOptions)[0]
    for key in sorted(options.keys() & there.keys() - FROM_A_LIBRARY.keys()):
        if node[key] != there[key]:
            raise InputError(f"{at}.{key}={node[key]}, but {checkpoint} holds {other} with {key}={there[key]}")
