"""The student of a finished run as a plain network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.errors import InputError
from kd.models.keys import without_prefix
from kd.models.weight_files import read
from kd.models.weights import fingerprint
from kd.run_folder import predictor
from kd.run_folder.layout import STUDENT, SUMMARY
from kd.run_folder.network import network_of
from kd.run_folder.summary import names_in, read_summary, require


def _check_described(student: Mapping[str, Any], written: Mapping[str, Any], folder: Path) -> None:
    """Refuses a summary whose description of the student differs from its weight file's."""
    for key in ("config", "mean", "std", "size"):
        if key in written and written[key] != student.get(key):
            raise InputError(
                f"{folder / SUMMARY} was edited: it has student.{key}={student.get(key)}, but {STUDENT} was written "
                f"with {written[key]}"
            )


def load_student(folder: str | Path, trust: bool = False) -> nn.Module:
    """The student of a finished run, in eval mode: images (uint8, or float in [0, 1]) to logits.

    Its attribute ``net`` is the bare network, and ``classes`` the names of the classes, None if the run's data
    has none. Its precision is the one in which the run saved it: float32 or float64.

    Args:
        folder: a run folder.
        trust: whether a class that is not registered with kd may be imported, as the run folder names it.

    Raises:
        InputError: no finished run, or a student that is neither registered nor trusted.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    require(summary, folder, *(f"student.{key}" for key in ("name", "config", "mean", "std")))
    require(summary, folder, *(f"data.{key}" for key in ("config", "classes", "shape")))
    student, data = summary["student"], summary["data"]
    options = {key: student[key] for key in ("mean", "std", "size", "output") if key in student}
    options["checkpoint"] = str(folder / STUDENT)
    normalisation = (student["mean"], student["std"])
    network = network_of(student["config"], "student", data["classes"], data["shape"], *normalisation, trust, **options)
    weights = without_prefix(read(folder / STUDENT), network.net.state_dict())
    _check_described(student, weights.metadata, folder)
    state = weights.state
    if any(tensor.dtype == torch.float64 for tensor in state.values()):  # trained with trainer.precision=64-true
        network.double().net.load_state_dict(state)
    if student.get("sha256", recorded := fingerprint(network.net)) != recorded:
        raise InputError(f"{folder / STUDENT} is not what the run wrote: its sha256 differs from {SUMMARY}'s")
    metadata = student.get("predictor")
    predicting = predictor.restore(network.eval(), metadata, data["shape"], folder, trust) if metadata else network
    predicting.classes = names_in(summary)
    return predicting.eval()
