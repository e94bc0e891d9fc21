"""Plants run folders, as kd-train leaves them, with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save_file

TEACHER = {"name": "resnet8", "sha256": "t" * 64, "checkpoint": "runs/teachers/resnet8-1", "parameters": 77_754}
NUMBERS = {"alpha": 0.9, "T": 4.0}


def plant(
    folder: Path,
    seed: int = 0,
    test: float = 0.9,
    objective: str | None = "kd",
    teacher: dict[str, Any] | None = TEACHER,
    T: float = 4.0,
    alpha: float = 0.9,
    val: tuple[float, float] = (0.93, 0.92),
    teacher_test: float = 0.97,
    student: str = "cnn",
    data: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """One finished run: ``val`` is best and last accuracy, ``extra`` adds to its student, ``more`` to its summary."""
    node = {"_target_": "kd.data.sources.digits", "val": 0.1, "split_seed": 0, **((data or {}).get("config") or {})}
    images = {"classes": 10, "shape": [1, 8, 8], "train": 1296, "val": 142, "test": 359, "sha256": "d" * 64}
    scores = {"acc": test, "nll": 0.4, "ece": 0.05}
    distilled = teacher is not None
    scores |= {"teacher_acc": teacher_test, "teacher_nll": 0.1, "agreement": 0.91, "kl": 0.2} if distilled else {}
    summary = {
        "format_version": 1,
        "task": "train",
        "versions": {"torch": "2.15.0"},
        "seed": seed,
        "data": {**images, **(data or {}), "config": node},
        "student": {
            "name": student,
            "config": {"_target_": f"kd.models.{student}"},
            "parameters": 5178,
            "macs": 83264,
            **(extra or {}),
        },
        "teacher": teacher,
        "objective": {"T": T, "alpha": alpha, "terms": ["total = 1 * x"], "name": objective},
        "training": {"epochs": 3, "steps": 60, "seconds": 2.5, "images_per_s": 1000.0},
        "metrics": {
            "monitor": "val/acc",
            "best": {"epoch": 1, "step": 40, "val/acc": val[0], **({"teacher/acc": 0.99} if distilled else {})},
            "last": {"epoch": 2, "step": 60, "val/acc": val[1]},
            "test": scores,
        },
        "cell": None,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    whole = {
        "task": "train",
        "T": T,
        "alpha": alpha,
        "seed": seed,
        "data": node,
        "student": {"_target_": f"kd.models.{student}"},
        "teacher": None,
        "objective": {"kd": {"T": T, "weight": alpha}} if distilled else {"ce": {"weight": 1.0}},
        "optim": {"_target_": "kd.optim.sgd", "lr": 0.05},
        "trainer": {"max_epochs": 3},
        **(config or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    return folder


def scratch(folder: Path, **more: Any) -> Path:
    """A finished run without a teacher."""
    return plant(folder, **{"objective": "ce", "teacher": None, **more})


def seeds(root: Path, name: str, scores: Sequence[float], first: int = 0, **more: Any) -> None:
    """Runs ``name/SEED`` with the given test accuracies."""
    make = scratch if more.get("teacher", TEACHER) is None or name == "scratch" else plant
    for seed, score in enumerate(scores, first):
        make(root / name / str(seed), seed=seed, test=score, **more)


def history(folder: Path, scores: Sequence[float]) -> None:
    """The validation accuracy of each epoch."""
    lines = [f"{epoch},{20 * (epoch + 1)},{score},{1 - score}" for epoch, score in enumerate(scores)]
    (folder / "history.csv").write_text("\n".join(["epoch,step,val/acc,val/nll", *lines]) + "\n")


def predictions(folder: Path, labels: NDArray[Any], student: NDArray[Any], teacher: NDArray[Any] | None = None) -> None:
    """Logits on the test set."""
    tensors = {"labels": labels.astype(np.int64), "student": student.astype(np.float16)}
    if teacher is not None:
        tensors["teacher"] = teacher.astype(np.float16)
    save_file(tensors, folder / "predictions.safetensors")


def typed(folder: Path, *words: str) -> None:
    """What Hydra would have recorded of the command line."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(list(words)))
    (folder / ".hydra/hydra.yaml").write_text(yaml.safe_dump({"hydra": {"job": {"config_name": "train"}}}))
    (folder / ".hydra/config.yaml").write_text("task: train\nstudent: {}\ntrainer: {}\n")
