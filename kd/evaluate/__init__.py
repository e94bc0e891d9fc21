"""``kd-evaluate``: what a run's student is worth on any data set with the same classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd.errors import InputError, unknown
from kd.evaluate import diagrams
from kd.evaluate.loaded_run import PARTS, Restored, restore
from kd.evaluate.measure import Evaluation, answer
from kd.evaluate.supply import supply
from kd.evaluate.table import show
from kd.evaluate.teacher import teacher_of
from kd.files import write_text
from kd.process.command import command, override
from kd.run_folder.layout import versions

FILE = "evaluation.json"
PROBE = ("student.head=new", "student.freeze=backbone", "teacher=none", "objective=ce")


def evaluate(
    run: str,
    data: dict[str, Any] = {},  # noqa: B006 (never changed; Hydra shows it)
    part: str = "test",
    batch_size: int | None = None,
    teacher_checkpoint: str | None = None,
    device: str = "auto",
    out: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Measures a run's student and leaves ``evaluation.json``, ``reliability.png`` and ``confusion.png``.

    Args:
        run: a run folder. It is data: nothing that it names is run unless it is registered with kd.
        data: a data node with the same classes; by default the run's own, with the keys given here changed.
        part: ``test``, ``val`` or, of data in memory, ``train`` (without augmentation).
        batch_size: images at a time.
        teacher_checkpoint: where the teacher's weights are now; ``none`` leaves the teacher out.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: the folder to write to; ``RUN/evaluation/<data>-<part>`` if None.
        trust: whether classes may be imported that the run folder names and kd does not know.

    Returns:
        What ``evaluation.json`` holds; its keys are in docs/evaluate.md.

    Raises:
        InputError: no finished run, data that does not fit, or a teacher that is not the run's.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    place, found = _device(device), _trained(restore(run, data, batch_size, trust))
    teacher, where = teacher_of(found, teacher_checkpoint, trust)
    measured = answer(found.student, teacher, found.batches(part), len(found.names), place)
    about = {"name": (found.summary["teacher"] or {}).get("name"), "measured": teacher is not None, "about": where}
    result = {**described(found, measured, part), "teacher": about, "device": str(place)}
    target = Path(out) if out else found.folder / "evaluation" / f"{found.data_name}-{part}"
    leave(result, target)
    supply(found, result, own=not data)
    show(result, target, FILE)
    return result


def _trained(found: Restored) -> Restored:
    if found.summary["student"].get("classifier") == "untrained":
        run = found.folder
        raise InputError(
            f"run={run}: its classifier is not trained; make a linear probe first: "
            + command("kd-train", override("student.checkpoint", run), *PROBE)
        )
    return found


def described(found: Restored, measured: Evaluation, part: str) -> dict[str, Any]:
    """What ``evaluation.json`` says of the student and the data."""
    confusion, reliability = measured.confusion(), measured.reliability()
    rows = zip(found.names, range(len(confusion)), confusion)
    return {
        "format_version": 1,
        "run": str(found.folder),
        "student": found.summary["student"]["name"],
        "data": {
            "name": found.data_name,
            "part": part,
            "config": found.node,
            "images": sum(reliability["count"]),
            "notes": list(found.notes),
            "chosen_on_test": found.summary["data"]["config"].get("val") == "test",
        },
        "versions": versions(),
        "metrics": measured.metrics(),
        "reliability": reliability,
        "classes": [
            {"name": name, "images": sum(row), "acc": row[i] / sum(row) if sum(row) else None} for name, i, row in rows
        ],
        "confusion": confusion,
    }


def _device(name: str) -> torch.device:
    known = ("auto", "cpu", "cuda")
    if name.partition(":")[0] not in known:
        raise unknown("device", name, known)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device={name}, but there is no CUDA device here; there is device=cpu")
    return torch.device(name)


def leave(result: Mapping[str, Any], folder: Path) -> None:
    """Writes the pictures and, last, ``evaluation.json``, each of them whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={folder} cannot be made: {error.strerror}") from error
    names = [own["name"] for own in result["classes"]]
    diagrams.reliability(result["reliability"], result["metrics"]["ece"], folder / "reliability.png")
    diagrams.confusion(result["confusion"], names, folder / "confusion.png")
    rows = ",\n".join(f"    {json.dumps(row)}" for row in result["confusion"])
    text = json.dumps({**result, "confusion": "ROWS"}, indent=2, allow_nan=False)
    write_text(folder / FILE, text.replace('"ROWS"', f"[\n{rows}\n  ]") + "\n")
