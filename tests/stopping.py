"""A small run by the command line, with callbacks for tests at hand; and how its checkpoints are spoiled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import kd_train_in

from kd.run_folder.checkpoints import latest

HERE = Path(__file__).parent
WORDS = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60"),
    *("data.batch_size=16", "teacher=none", "objective=ce", "epochs=2", "trainer.enable_progress_bar=false"),
    "trainer.log_every_n_steps=2",
)
POISON = "+callbacks.poison._target_=saboteur.Poison"


def launched(
    folder: Path, *words: str, fresh: bool = False, before: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """``kd-train`` with callbacks for tests at hand; ``before`` is called first, or the interpreter is ``fresh``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    return kd_train_in(folder, [*WORDS, *words], environment, fresh=fresh, timeout=120, before=before)


def torn(run: Path) -> None:
    """Cuts the last checkpoint off."""
    (run / "checkpoints/last.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:1000])


def edited(path: Path, **changes: Any) -> None:
    """Changes what a checkpoint says of its run."""
    content = torch.load(path, weights_only=True)
    content["kd"] |= changes
    torch.save(content, path)


def finite(folder: Path) -> int:
    """The step of the last checkpoint, whose numbers are all finite."""
    found = latest(folder)
    assert found is not None
    assert all(value.isfinite().all() for value in found.content["state_dict"].values())
    return int(found.content["global_step"])
