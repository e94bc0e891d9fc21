"""The teacher of a run, with the weights that it had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kd.distill.ensemble import Ensemble
from kd.distill.methods import DISTILLERS
from kd.distill.spec import TeacherSpec
from kd.errors import InputError
from kd.evaluate.loaded_run import Restored
from kd.registry import check_registered, is_node_of, parameters_of
from kd.run_folder.layout import CONFIG, STUDENT
from kd.run_folder.summary import read_config, require
from kd.train import assemble


def teacher_of(found: Restored, checkpoint: str | None, trust: bool) -> tuple[assemble.Teacher | None, str]:
    """The run's teacher with its weights, and where they are; or None, and why.

    Args:
        found: the run.
        checkpoint: where the teacher's weights are now, ``none`` to leave it out, None to look where they were.
        trust: whether the teacher may be a class that is not registered with kd.

    Raises:
        InputError: weights that are not those of the run, or a teacher that is neither registered nor trusted.
    """
    about, own = found.summary["teacher"], found.summary["data"]
    if about is None or checkpoint == "none":
        return None, "the run had none" if about is None else "left out, as asked"
    require(found.summary, found.folder, "teacher.sha256")
    node = _teacher_node(found.folder, trust)
    spec = TeacherSpec.parse(node)
    if spec.online:
        return None, "it changed with the student and was not kept"
    nodes = _with_weights(spec, about, checkpoint, found.folder)
    if absent := [member["absent"] for member in nodes.values() if "absent" in member]:
        return None, f"its weights are no longer at {absent[0]}"
    where = ", ".join(member["checkpoint"] or "its library" for member in nodes.values())
    like = SimpleNamespace(classes=own["classes"], shape=own["shape"])
    try:
        teacher = assemble.teacher({"teacher": spec.with_members(nodes)}, like)
    except InputError as error:
        if all(member["checkpoint"] for member in nodes.values()):
            raise
        return None, str(error)  # weights of a library, which may be out of reach
    assert teacher is not None
    if (sha256 := teacher.fingerprint()) != about["sha256"]:
        raise InputError(
            f"the teacher at {where} is not the run's: its sha256 is {sha256[:12]}..., the run's was "
            f"{about['sha256'][:12]}...; teacher_checkpoint=none leaves it out"
        )
    if any(parameter.dtype == torch.float64 for parameter in found.student.parameters()):
        teacher.double()  # as in the run
    return teacher, where


def _with_weights(
    spec: TeacherSpec, about: Mapping[str, Any], checkpoint: str | None, folder: Path
) -> dict[str, dict[str, Any]]:
    """The nodes of the teacher's networks with their pixels' statistics and weights, or with what is ``absent``."""
    told = about.get("members", {"": about})
    nodes: dict[str, dict[str, Any]] = {}
    for name, member in spec.nodes().items():
        own = told.get(name, {})
        _check_described(member, {**(own.get("config") or {}), "classes": own.get("classes")}, folder)
        path = checkpoint or own.get("checkpoint")
        weights = _found(path, folder)
        if checkpoint is not None and weights is None:
            raise InputError(f"teacher_checkpoint={checkpoint} holds no weights")
        named = parameters_of(member, "teacher")
        pixels = {key: own[key] for key in ("mean", "std", "size") if key in own and key not in named}
        lost = {"absent": path} if path is not None and weights is None else {}
        nodes[name] = {**member, **pixels, "checkpoint": weights and str(weights), **lost}
    return nodes


def _check_described(node: Mapping[str, Any], known: Mapping[str, Any], folder: Path) -> None:
    """Refuses a configuration whose teacher is not the summary's."""
    for key, value in known.items():
        if node.get(key) != value:
            raise InputError(
                f"{folder / CONFIG} was edited: its teacher has {key}={node.get(key)}, but the run's had {value}; "
                "teacher_checkpoint=none leaves the teacher out"
            )


def _teacher_node(folder: Path, trust: bool) -> Mapping[str, Any]:
    """The teacher's node as the run resolved it; nothing in it but kd's own ensemble and what is registered."""
    try:
        node = read_config(folder)["teacher"]
    except InputError as error:
        raise InputError(f"{error}; teacher_checkpoint=none skips the teacher") from error
    except KeyError as error:
        raise InputError(f"{folder / CONFIG} has no teacher; teacher_checkpoint=none skips the teacher") from error
    if not trust:
        outer = {**node, "_target_": None} if is_node_of(node, Ensemble) else node
        check_registered(outer, "teacher", known=DISTILLERS)
    return node


def _found(path: str | None, folder: Path) -> Path | None:
    """A path as it was typed when the run started: from here, or from a folder that the run folder is in."""
    if path is None:
        return None
    places = [place / path for place in (Path(), *folder.resolve().parents)]
    return next((place for place in places if place.is_file() or (place / STUDENT).is_file()), None)
