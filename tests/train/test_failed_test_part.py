"""A run whose test part fails preserves what it trained, and its test scores can be computed later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from command_runs import launched
from conftest import Complain
from fork import kd_train_in
from paths import PYTHONPATH
from safetensors.torch import load_file
from test_quoting import words_of
from test_resume import pictures

import kd
from kd import InputError
from kd.evaluate import evaluate
from kd.export import export
from kd.report import write
from kd.run_folder.summary import is_finished

FAIL = "+callbacks.fail._target_=test_failed_test_part.Fail"
FOLDER = (
    *("data=folder", "data.root=pictures", "data.size=16", "data.batch_size=8", "data.val=0.2", "data.workers=0"),
    *("teacher=none", "objective=ce", "student=cnn", "epochs=2", "trainer.enable_progress_bar=false"),
)


class Fail(pl.Callback):
    """Fails in the test, unless there is a file ``mended``."""

    def on_test_batch_start(self, *_: Any) -> None:
        if not Path("mended").exists():
            raise InputError("test/7.png cannot be decoded")


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose test failed, ``run``, and one that was tested, ``done``."""
    folder = tmp_path_factory.mktemp("broken")
    failed = launched(folder, FAIL, "hydra.run.dir=run")
    assert failed.returncode == 2
    assert failed.stderr == "error: test/7.png cannot be decoded\n"
    (folder / "said.txt").write_text(failed.stdout)
    assert launched(folder, "hydra.run.dir=done").returncode == 0
    return folder


@pytest.fixture
def here(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(broken, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_failed_test_preserves_student_history_and_summary(here: Path) -> None:
    mine, its = summary_of(here / "run"), summary_of(here / "done")
    assert mine["metrics"]["test"] is None
    assert mine["metrics"]["untested"] == "test/7.png cannot be decoded"
    assert mine["metrics"]["best"] == its["metrics"]["best"]
    assert mine["student"]["sha256"] == its["student"]["sha256"]
    assert (here / "run/history.csv").read_text() == (here / "done/history.csv").read_text()
    left, wanted = (load_file(here / name / "student.safetensors") for name in ("run", "done"))
    assert all(torch.equal(left[key], wanted[key]) for key in wanted)
    assert kd.load(here / "run")(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert not is_finished(here / "run")
    assert is_finished(here / "done")


def test_suggested_command_computes_the_missing_scores(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = (line for line in (here / "said.txt").read_text().splitlines() if line.startswith("the test failed"))
    program, *words = words_of(line.partition("test it with: ")[2])
    assert program == "kd-evaluate"
    monkeypatch.setattr(sys, "argv", [program, *words])
    kd.cli.evaluate()
    metrics = summary_of(here / "run")["metrics"]
    assert metrics["test"] == pytest.approx(summary_of(here / "done")["metrics"]["test"])
    assert "untested" not in metrics
    assert "test_data_sha256" not in metrics
    assert is_finished(here / "run")


def test_scores_on_other_data_or_parts_are_not_used_as_test_scores(here: Path) -> None:
    evaluate("run", part="val")
    evaluate("run", data={"test": 40})
    assert summary_of(here / "run")["metrics"]["test"] is None
    before = summary_of(here / "done")
    evaluate("done")
    assert summary_of(here / "done") == before


def test_a_resume_tests_and_trains_nothing(here: Path) -> None:
    again = kd_train_in(here, ["resume=run", "trust=true"], {"PYTHONPATH": PYTHONPATH})
    assert again.returncode == 2
    assert again.stderr == "error: test/7.png cannot be decoded\n"
    (here / "mended").touch()
    on = kd_train_in(here, ["resume=run", "trust=true"], {"PYTHONPATH": PYTHONPATH})
    assert on.returncode == 0, on.stderr
    mine, its = summary_of(here / "run"), summary_of(here / "done")
    assert mine["metrics"] == its["metrics"]
    assert mine["training"]["steps"] == its["training"]["steps"]


def test_failed_test_of_a_longer_run_removes_older_predictions(here: Path) -> None:
    (here / "mended").touch()
    assert kd_train_in(here, ["resume=run", "trust=true"], {"PYTHONPATH": PYTHONPATH}).returncode == 0
    (here / "mended").unlink()
    longer = kd_train_in(here, ["resume=run", "trust=true", "epochs=3"], {"PYTHONPATH": PYTHONPATH})
    assert longer.returncode == 2
    assert summary_of(here / "run")["training"]["epochs"] == 3
    assert summary_of(here / "run")["metrics"]["test"] is None
    assert not (here / "run/predictions.safetensors").exists()


def test_report_and_export_accept_a_run_without_test_scores(here: Path) -> None:
    write(here, here / "out")
    assert "no test accuracy, unlike the others" in (here / "out/results.csv").read_text()
    shutil.rmtree(here / "done")
    write(here, here / "alone")
    assert "run,finished" in (here / "alone/results.csv").read_text()
    export("run", format="safetensors")
    assert "not measured" in (here / "run/export/safetensors/card.md").read_text()


def test_report_accepts_a_run_without_validation(here: Path) -> None:
    assert launched(here, "+trainer.max_steps=3", "hydra.run.dir=blind/run").returncode == 0
    write(here / "blind", here / "out")
    assert "run,finished" in (here / "out/results.csv").read_text()


def test_damaged_test_picture_does_not_lose_the_training(tmp_path: Path, complain: Complain) -> None:
    pictures(tmp_path)
    picture = tmp_path / "pictures/val/class1/3.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60])
    failed = kd_train_in(tmp_path, [*FOLDER, "hydra.run.dir=run"], {})
    assert failed.returncode == 2
    assert "3.png cannot be decoded" in failed.stderr
    assert summary_of(tmp_path / "run")["metrics"]["test"] is None
    picture.write_bytes(whole)
    assert "; if it was changed on purpose, set resume_data=changed" in complain("resume=run")
    assert "unknown choice 'chnged'" in complain("resume=run", "resume_data=chnged")
    on = kd_train_in(tmp_path, ["resume=run", "resume_data=changed"], {})
    assert on.returncode == 0, on.stderr
    assert "resumed anyway, as resume_data=changed is set" in on.stdout
    assert summary_of(tmp_path / "run")["metrics"]["test"]["acc"] >= 0
    assert "is already finished" in kd_train_in(tmp_path, ["resume=run"], {}).stdout


def test_evaluation_on_repaired_data_reports_that_the_data_changed(tmp_path: Path) -> None:
    pictures(tmp_path)
    picture = tmp_path / "pictures/val/class1/3.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60])
    words = [word.replace("data.root=", f"data.root={tmp_path}/") for word in FOLDER]
    assert kd_train_in(tmp_path, [*words, "hydra.run.dir=run"], {}).returncode == 2
    picture.write_bytes(whole)
    evaluate(str(tmp_path / "run"))
    metrics = summary_of(tmp_path / "run")["metrics"]
    assert metrics["test"]["acc"] >= 0
    assert len(metrics["test_data_sha256"]) == 64


def compared(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``kd-compare`` of scratch and kd, with a callback that fails in the test."""
    small = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60", "epochs=1")
    words = ("seeds=1", *words, *small, "teacher=cnn", "teacher.min_accuracy=0", FAIL)
    command = [sys.executable, "-c", "import kd.cli; kd.cli.compare()", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHONPATH, *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_comparison_continues_after_a_cell_with_a_failed_test(tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    first = compared(tmp_path, "study=other", "objective=dkd")  # trains the teacher
    assert first.returncode == 0, first.stderr
    (tmp_path / "mended").unlink()
    failed = compared(tmp_path, "study=study")
    assert failed.returncode == 2
    assert "test/7.png cannot be decoded" in failed.stderr
    steps = summary_of(tmp_path / "study/kd/0")["training"]["steps"]
    (tmp_path / "mended").touch()
    on = compared(tmp_path, "study=study")
    assert on.returncode == 0, on.stderr
    for cell in ("kd", "scratch"):
        assert is_finished(tmp_path / f"study/{cell}/0")
    assert summary_of(tmp_path / "study/kd/0")["training"]["steps"] == steps
