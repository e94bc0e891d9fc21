"""``kd-evaluate``: evaluates a run's student on any dataset with the same classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd.errors import InputError, unknown
from kd.evaluate import diagrams
from kd.evaluate.complete_summary import complete_summary
from kd.evaluate.loaded_run import PARTS, LoadedRun, load_run
from kd.evaluate.measure import Evaluation, measure
from kd.evaluate.table import print_result
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
    """Evaluates a run's student and writes ``evaluation.json``, ``reliability.png`` and ``confusion.png``.

    Args:
        run: a run folder. It is data: code that it names is run only if it is registered with kd.
        data: a data node with the same classes; without a ``_target_``, keys of the run's own data to change.
        part: ``test``, ``val`` or, for data in memory, ``train`` (without augmentation).
        batch_size: images per batch.
        teacher_checkpoint: path of the teacher's weights, if they were moved; ``none`` skips the teacher.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: the output folder; ``RUN/evaluation/<data>-<part>`` if None.
        trust: whether to import classes that the run folder names and that are not registered with kd.

    Returns:
        The content of ``evaluation.json``; docs/evaluate.md describes its keys.

    Raises:
        InputError: no finished run, incompatible data, or a teacher other than the run's.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    processor, loaded = _device(device), _with_classifier(load_run(run, data, batch_size, trust))
    teacher, reason = teacher_of(loaded, teacher_checkpoint, trust)
    evaluation = measure(loaded.student, teacher, loaded.batches(part), len(loaded.names), processor)
    status = {"measured": teacher is not None, "about": reason}
    result = {**describe(loaded, evaluation, part, status), "device": str(processor)}
    target = Path(out) if out else loaded.folder / "evaluation" / f"{loaded.data_name}-{part}"
    write(result, target)
    complete_summary(loaded, result, is_own_data=not data)
    print_result(result, target, FILE)
    return result


def _with_classifier(loaded: LoadedRun) -> LoadedRun:
    """Refuses a run whose classifier is not trained."""
    if loaded.summary["student"].get("classifier") == "untrained":
        probe = command("kd-train", override("student.checkpoint", loaded.folder), *PROBE)
        raise InputError(f"run={loaded.folder}: its classifier is not trained; train a linear probe first: {probe}")
    return loaded


def describe(loaded: LoadedRun, evaluation: Evaluation, part: str, teacher_status: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``evaluation.json`` except the device."""
    confusion, reliability = evaluation.confusion(), evaluation.reliability()
    rows = zip(loaded.names, range(len(confusion)), confusion)
    return {
        "format_version": 1,
        "run": str(loaded.folder),
        "student": loaded.summary["student"]["name"],
        "data": {
            "name": loaded.data_name,
            "part": part,
            "config": loaded.node,
            "images": sum(reliability["count"]),
            "notes": list(loaded.notes),
            "chosen_on_test": loaded.summary["data"]["config"].get("val") == "test",
        },
        "versions": versions(),
        "metrics": evaluation.metrics(),
        "reliability": reliability,
        "classes": [
            {"name": name, "images": sum(row), "acc": row[i] / sum(row) if sum(row) else None} for name, i, row in rows
        ],
        "confusion": confusion,
        "teacher": {"name": (loaded.summary["teacher"] or {}).get("name"), **teacher_status},
    }


def _device(name: str) -> torch.device:
    choices = ("auto", "cpu", "cuda")
    if name.partition(":")[0] not in choices:
        raise unknown("device", name, choices)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device={name}: no CUDA device is available; set device=cpu")
    return torch.device(name)


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Writes the diagrams and then ``evaluation.json``, each atomically."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={folder} cannot be created: {error.strerror}") from error
    names = [each["name"] for each in result["classes"]]
    diagrams.reliability(result["reliability"], result["metrics"]["ece"], folder / "reliability.png")
    diagrams.confusion(result["confusion"], names, folder / "confusion.png")
    rows = ",\n".join(f"    {json.dumps(row)}" for row in result["confusion"])
    text = json.dumps({**result, "confusion": "ROWS"}, indent=2, allow_nan=False)
    write_text(folder / FILE, text.replace('"ROWS"', f"[\n{rows}\n  ]") + "\n")
