"""Two processes with gloo: they train, agree with one process, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

SYNTHETIC = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=400", "data.test=101")
QUIET = ("trainer.enable_progress_bar=false", "trainer.accelerator=cpu")
SMALL = (*SYNTHETIC, *QUIET, "teacher=resnet8", "teacher.epochs=8", "student=cnn", "epochs=2")
ALONE = (*SYNTHETIC, *QUIET, "teacher=none", "objective=ce", "epochs=2", "trainer.log_every_n_steps=1")
TWO = ("trainer=ddp", "data.batch_size=32")


@pytest.fixture
def kd_train(kd_train: Run) -> Run:
    """In an interpreter of its own, of which Lightning starts another."""
    return partial(kd_train, fresh=True)


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "error" in line.lower()]


def left_alive(folder: Path) -> list[str]:
    """Processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_two_processes_train_a_teacher_and_a_student(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, *TWO, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = summary_of(tmp_path / "run")
    assert summary["training"]["steps"] == 2 * (360 // 64)
    share = summary["metrics"]["test"]["acc"] * 101
    assert share == pytest.approx(round(share), abs=1e-3)
    assert done.stdout.count("objective: total") == 2
    assert done.stdout.count("teacher: no checkpoint") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run", "runs"}
    assert not list(tmp_path.rglob(".ended-*"))


@pytest.mark.slow
def test_each_job_of_a_sweep_has_its_two_processes(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, *TWO, "-m", "T=1,4", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.name: summary_of(path) for path in (tmp_path / "sweep").iterdir() if path.name.isdigit()}
    assert {name: summary["objective"]["T"] for name, summary in found.items()} == {"0": 1, "1": 4}
    assert {summary["training"]["steps"] for summary in found.values()} == {2 * (360 // 64)}
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "runs"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} <= {"teachers", "cache"}
    assert not left_alive(tmp_path)


@pytest.mark.slow
def test_a_comparison_has_two_processes_for_each_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from kd.cli import compare\n\nif __name__ == '__main__':\n    compare()\n")
    command = [sys.executable, "mine.py", *SMALL, *TWO, "objective=kd", "seeds=1", "study=study"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = {summary_of(tmp_path / f"study/{label}/0")["training"]["steps"] for label in ("scratch", "kd")}
    assert steps == {2 * (360 // 64)}
    assert not left_alive(tmp_path)


@pytest.mark.slow
def test_measures_do_not_depend_on_the_number_of_processes(kd_train: Run, tmp_path: Path) -> None:
    given = (*SYNTHETIC[:-1], "data.test=17", "data.val=test", *QUIET, "teacher=mlp", "teacher.epochs=3", "epochs=1")
    given += ("student=mlp", "student.width=8", "optim.lr=1e-3", "teacher.min_accuracy=0")
    scores = []
    for name, words in {"one": ("data.batch_size=64",), "two": TWO}.items():
        checkpoint = [f"teacher.checkpoint={next((tmp_path / 'runs/teachers').iterdir())}"] if name == "two" else []
        done = kd_train(*given, *words, *checkpoint, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr[-3000:]
        metrics = summary_of(tmp_path / name)["metrics"]
        scores.append({**metrics["best"], **{f"test/{key}": value for key, value in metrics["test"].items()}})
    one, two = scores
    assert {"val/acc", "val/nll", "val/ece", "teacher/nll", "val/agreement", "val/kl", "test/nll"} <= one.keys()
    assert two == pytest.approx(one, abs=1e-6)


BROKEN = """
import os, signal, time
from pytorch_lightning.callbacks import Callback

class Broken(Callback):
    def __init__(self, rank, how):
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer, module, batch, step):
        if trainer.global_rank == self.rank and step == 2:
            open("when", "w").write(str(time.time()))
            if self.how == "raise":
                raise RuntimeError("this rank says no")
            if self.how == "full":
                raise OSError(28, "No space left on device", "somewhere")
            os.kill(os.getpid(), signal.SIGKILL)
"""
ENDS = {
    ("raise", 1): (1, "error: RuntimeError: this rank says no; the whole traceback is in "),
    ("raise", 0): (1, "error: RuntimeError: this rank says no; the whole traceback is in "),
    ("full", 1): (3, "error: no space left: No space left on device: somewhere"),
    ("kill", 1): (3, "error: rank 1 of 2 processes was lost (killed by SIGKILL); the last checkpoint is kept"),
    ("kill", 0): (-9, "error: another process of this job was lost, or did not respond in time"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "rank"), ENDS)
def test_a_broken_process_ends_all_of_them(how: str, rank: int, kd_train: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    own = ("+callbacks.own._target_=broken.Broken", f"+callbacks.own.rank={rank}", f"+callbacks.own.how={how}")
    done = kd_train(*ALONE, *TWO, *own, "hydra.run.dir=run")
    code, line = ENDS[how, rank]
    while left_alive(tmp_path) and time.time() < float((tmp_path / "when").read_text()) + 30:
        time.sleep(0.2)
    took = time.time() - float((tmp_path / "when").read_text())
    assert not left_alive(tmp_path)
    assert took < 30
    assert done.returncode == code, done.stderr[-3000:]
    assert [line[: len(ENDS[how, rank][1])] for line in errors(done.stderr)] == [line]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run/traceback.txt").exists() == (how == "raise")
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.slow
def test_two_processes_report_bad_input_once(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, *TWO, "teacher.min_accuracy=1", "teacher.epochs=1", "optim.lr=1e-9", "hydra.run.dir=run")
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = errors(done.stderr)
    assert line.startswith("error: the teacher has a validation accuracy of ")
    assert "less than teacher.min_accuracy=1" in line
    assert not left_alive(tmp_path)


def torchrun(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "kd.cli"]
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *started, *words]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_torchrun_starts_the_processes_of_one_run(tmp_path: Path) -> None:
    done = torchrun(tmp_path, *SMALL, *TWO, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert summary_of(tmp_path / "run")["training"]["steps"] == 2 * (360 // 64)
    assert done.stdout.count("teacher: no checkpoint") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run", "runs"}


@pytest.mark.slow
def test_torchrun_without_a_common_folder_is_refused_once(tmp_path: Path) -> None:
    done = torchrun(tmp_path, *ALONE, *TWO)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "set the folder that they share, hydra.run.dir=FOLDER" in said[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_broken_process_under_torchrun_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    own = ("+callbacks.own._target_=broken.Broken", "+callbacks.own.rank=1", "+callbacks.own.how=raise")
    done = torchrun(tmp_path, *ALONE, *TWO, *own, "hydra.run.dir=run")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith("error: RuntimeError: this rank says no")
    assert not left_alive(tmp_path)
