"""Loads the teacher of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kd.data.datamodule import image_data
from kd.distill.ensemble import Ensemble
from kd.distill.methods import DISTILLERS
from kd.distill.spec import TeacherSpec
from kd.errors import InputError
from kd.evaluate.loaded_run import LoadedRun
from kd.registry import check_registered, is_node_of, parameters_of
from kd.run_folder.layout import CONFIG, STUDENT
from kd.run_folder.summary import read_config, require
from kd.train import assemble


def teacher_of(loaded: LoadedRun, checkpoint: str | None, trust: bool) -> tuple[assemble.Teacher | None, str]:
    """The run's teacher and the path of its weights; or None and the reason.

    Args:
        loaded: the run.
        checkpoint: path of the teacher's weights, ``none`` to skip the teacher, None for the path in the summary.
        trust: whether the teacher may be a class that is not registered with kd.

    Raises:
        InputError: other weights than the run's, or a teacher that is neither registered nor trusted.
    """
    summary, data = loaded.summary["teacher"], loaded.summary["data"]
    if summary is None or checkpoint == "none":
        return None, "the run has no teacher" if summary is None else "skipped (teacher_checkpoint=none)"
    require(loaded.summary, loaded.folder, "teacher.sha256")
    node = _teacher_node(loaded.folder, trust)
    spec = TeacherSpec.parse(node)
    if spec.online:
        return None, "it was trained with the student and not saved"
    nodes = _with_weights(spec, summary, checkpoint, loaded.folder)
    if absent := [member["absent"] for member in nodes.values() if "absent" in member]:
        return None, f"its weights are no longer at {absent[0]}"
    where = ", ".join(member["checkpoint"] or "its library" for member in nodes.values())
    like = image_data(SimpleNamespace(classes=data["classes"], shape=data["shape"]))
    try:
        teacher = assemble.teacher({"teacher": spec.with_members(nodes)}, like)
    except InputError as error:
        if all(member["checkpoint"] for member in nodes.values()):
            raise
        return None, str(error)  # weights of a library, which may be unavailable
    assert teacher is not None
    if (sha256 := teacher.fingerprint()) != summary["sha256"]:
        raise InputError(
            f"the teacher at {where} is not the run's: its sha256 is {sha256[:12]}..., the run's is "
            f"{summary['sha256'][:12]}...; teacher_checkpoint=none skips the teacher"
        )
    if any(parameter.dtype == torch.float64 for parameter in loaded.student.parameters()):
        teacher.double()  # as in the run
    return teacher, where


def _with_weights(
    spec: TeacherSpec, summary: Mapping[str, Any], checkpoint: str | None, folder: Path
) -> dict[str, dict[str, Any]]:
    """The nodes of the teacher's networks with normalisation and weights, or with the path that is ``absent``."""
    members = summary.get("members", {"": summary})
    nodes: dict[str, dict[str, Any]] = {}
    for name, node in spec.nodes().items():
        member = members.get(name, {})
        _check_unedited(node, {**(member.get("config") or {}), "classes": member.get("classes")}, folder)
        path = checkpoint or member.get("checkpoint")
        weights = _existing(path, folder)
        if checkpoint is not None and weights is None:
            raise InputError(f"teacher_checkpoint={checkpoint} contains no weights")
        parameters = parameters_of(node, "teacher")
        pixels = {key: member[key] for key in ("mean", "std", "size") if key in member and key not in parameters}
        absent = {"absent": path} if path is not None and weights is None else {}
        nodes[name] = {**node, **pixels, "checkpoint": weights and str(weights), **absent}
    return nodes


def _check_unedited(node: Mapping[str, Any], recorded: Mapping[str, Any], folder: Path) -> None:
    """Checks that the teacher in ``config.yaml`` is the one recorded in the summary."""
    for key, value in recorded.items():
        if node.get(key) != value:
            raise InputError(
                f"{folder / CONFIG} was edited: its teacher has {key}={node.get(key)}, the run's has {key}={value}; "
                "teacher_checkpoint=none skips the teacher"
            )


def _teacher_node(folder: Path, trust: bool) -> Mapping[str, Any]:
    """The teacher's node in ``config.yaml``; unless trusted, all its classes must be registered with kd."""
    try:
        node = read_config(folder)["teacher"]
    except InputError as error:
        raise InputError(f"{error}; teacher_checkpoint=none skips the teacher") from error
    except KeyError as error:
        raise InputError(f"{folder / CONFIG} has no teacher; teacher_checkpoint=none skips the teacher") from error
    if not trust:
        outer = {**node, "_target_": None} if is_node_of(node, Ensemble) else node
        check_registered(outer, "teacher", trusted=DISTILLERS)
    return node


def _existing(path: str | None, folder: Path) -> Path | None:
    """A relative path of the run's command line, resolved from the working directory or a parent of the run folder."""
    if path is None:
        return None
    candidates = [parent / path for parent in (Path(), *folder.resolve().parents)]
    return next((each for each in candidates if each.is_file() or (each / STUDENT).is_file()), None)
