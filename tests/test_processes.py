"""Two processes with gloo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run

SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=400", "data.test=101"),
    *("teacher=resnet8", "teacher.epochs=8", "student=cnn", "epochs=2", "trainer.enable_progress_bar=false"),
)


@pytest.mark.slow
def test_two_processes_train_a_teacher_and_a_student(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, "trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=32", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["training"]["steps"] == 2 * (360 // 64)
    share = summary["metrics"]["test"]["acc"] * 101
    assert share == pytest.approx(round(share), abs=1e-3)
    assert done.stdout.count("objective: total") == 2
