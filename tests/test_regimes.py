"""Every training regime: its student is exported and reported, and its runs resume exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_resume import QUIET, as_if_nothing_happened, interrupted, whole
from trained import trained

import kd
from kd.export import export
from kd.report import write

SMALL = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=160", "data.test=60", "epochs=2")
TAUGHT = ("teacher=resnet8", "teacher.epochs=2", "teacher.min_accuracy=0")
DEIT = (
    *("student=deit_tiny", "student.patch=2", "student.width=16", "student.depth=2", "objective=deit_hard"),
    *("optim=adamw", "callbacks=ema", "data.repeats=3", "data.mixup=0.2", "data.cutmix=0.2", "data.erase=0.25"),
)
TIMM = (
    *("student=timm", "student.name=deit_tiny_distilled_patch16_224", "objective=deit_soft", "optim=adamw"),
    "student.options={img_size: 8, patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}",
)
REGIMES = {
    "deit_hard": (*TAUGHT, *DEIT),
    "deit_soft": (*TAUGHT, *TIMM),
    "dot": (*TAUGHT, "student=cnn", "optim=dot"),
    "byot": ("teacher=none", "student=resnet8", "objective=byot"),
    "tfkd": ("teacher=none", "student=cnn", "objective=tfkd"),
    "tfkd_self": (*TAUGHT, "student=resnet8", "objective=tfkd_self"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, words in REGIMES.items():
        trained(folder / name, *SMALL, *words)
    return folder


@pytest.mark.parametrize("name", REGIMES)
def test_the_student_is_exported(name: str, runs: Path) -> None:
    kind = "onnx" if name.startswith("deit") else "torch_export"
    card = export(str(runs / name / "run"), kind)
    assert card["check"]["largest_difference"] < 1e-4
    assert kd.load(runs / name / "run").training is False


def test_report_covers_all_regimes(runs: Path) -> None:
    table = write(runs, runs).markdown()
    assert "| teacher resnet8" in table or "| resnet8" in table, table
    for label in ("byot", "tfkd"):
        assert label in table, table


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_hard", "dot", "byot"])
def test_killed_run_resumes_to_the_same_result(name: str, tmp_path: Path) -> None:
    words = (*SMALL, "epochs=3", "data.batch_size=16", "callbacks.last.steps=1", *REGIMES[name], *QUIET)
    full = whole(tmp_path, "full", *words)
    for batch in (1, 3):
        struck = interrupted(tmp_path, f"struck{batch}", {"moment": "step", "epoch": 1, "batch": batch}, *words)
        as_if_nothing_happened(struck, full)
