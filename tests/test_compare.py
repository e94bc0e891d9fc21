"""Comparisons: the plan, its runs, and resuming an interrupted one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Complain
from forked import kd_train_in
from hypothesis import given
from hypothesis import strategies as st

from kd.compare.plan import SCRATCH, Cell, plan
from kd.errors import InputError

SMALL = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=400", "data.test=100")
SMALL += ("teacher=mlp", "teacher.epochs=8", "student=cnn", "epochs=2")


@given(st.lists(st.sampled_from(["kd", "dkd", "dist"]), min_size=1, unique=True), st.integers(1, 5), st.booleans())
def test_every_objective_is_compared_with_scratch_on_every_seed(
    objectives: list[str], seeds: int, shuffled: bool
) -> None:
    cells = plan(objectives, seeds, shuffled, {"own": ["T=2"]})
    labels = [SCRATCH, *objectives, *(["shuffled"] if shuffled else []), "own"]
    assert [(cell.label, cell.seed) for cell in cells] == [(label, seed) for seed in range(seeds) for label in labels]
    assert all((cell.role == "scratch") == (cell.label == SCRATCH) for cell in cells)


def test_scratch_student_does_not_depend_on_the_teacher() -> None:
    words = [
        "teacher=resnet8",
        "teacher.epochs=3",
        "objective.kd.T=2",
        "+loss@objective.x=sp",
        "optim.lr=0.1",
        "teachers=x",
    ]
    cell = Cell(SCRATCH, "scratch", 3, ("objective=ce", "teacher=none"))
    assert cell.words("s", words)[:4] == ["optim.lr=0.1", "teachers=x", "objective=ce", "teacher=none"]
    assert Cell("kd", "student", 3, ("objective=kd",)).words("s", words)[:6] == words


def test_invalid_plans_are_refused() -> None:
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((["kd"], 0, False, {}), "seeds must be a count of at least 1"),
        ((["kd"], [1, 1], False, {}), "different whole numbers"),
        (([], 2, False, {}), "objective: name at least one"),
        ((["kd"], 2, False, {"kd": []}), r"variants\.kd: a label consists"),
        ((["kd"], 2, False, {"a/b": []}), r"variants\.a/b: a label consists"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            plan(*arguments)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import kd.cli; kd.cli.compare()", *SMALL, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def compared(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A comparison that is waited for, in a forked process."""
    return kd_train_in(folder, [*SMALL, *words], {"COLUMNS": "160"}, command="compare")


def results(folder: Path) -> list[dict[str, str]]:
    """The rows of a study's table, without what is measured by the clock."""
    (path,) = folder.glob("runs/compare/*/results.csv")
    rows = list(csv.DictReader(path.open()))
    return [
        {key: value for key, value in row.items() if "second" not in key and "images_per_s" not in key} for row in rows
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished comparison, and what it said."""
    folder = tmp_path_factory.mktemp("study")
    done = compared(folder, "objective=[kd,dkd]", "seeds=2", "shuffled=true")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_output_of_a_comparison(study: tuple[Path, str]) -> None:
    folder, output = study
    assert "teacher: no checkpoint, so it is trained first, 8 epochs, once" in output
    for words in ("scratch", "dkd", "shuffled", "gain", "2 paired seeds", "report: runs/compare/cnn-"):
        assert words in output
    assert "shuffled (control)" in output
    assert output.count("(control)") == 1
    (runs,) = folder.glob("runs/compare/*")
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == [
        "dkd",
        "kd",
        "report",
        "scratch",
        "shuffled",
    ]
    assert (runs / "report.html").stat().st_size > 10_000
    for label in ("scratch", "kd"):
        summary = json.loads((runs / label / "1/summary.json").read_text())
        role = "scratch" if label == "scratch" else "student"
        assert summary["cell"] == {"study": runs.name, "role": role, "label": label, "seed": 1}
        assert (runs / label / "1/train.log").is_file()
    assert len(list((folder / "runs/teachers").iterdir())) == 1
    assert len(list((folder / "runs/cache").iterdir())) == 1


def test_all_students_of_a_seed_start_alike(study: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (runs,) = study[0].glob("runs/compare/*")
    firsts = set()
    for label in ("scratch", "kd", "dkd", "shuffled"):
        summary = json.loads((runs / label / "0/summary.json").read_text())
        firsts.add((summary["training"]["steps"], summary["data"]["sha256"]))
    assert len(firsts) == 1
    tags = EventAccumulator(str(runs / "report")).Reload().Tags()
    assert "report/text_summary" in tags["tensors"]


def test_the_same_command_runs_nothing_twice(study: tuple[Path, str]) -> None:
    folder, _ = study
    before = results(folder)
    times = {path: path.stat().st_mtime for path in folder.rglob("summary.json")}
    done = compared(folder, "objective=[kd,dkd]", "seeds=2", "shuffled=true")
    assert done.returncode == 0, done.stderr
    assert "8 of 8 runs are already finished" in done.stdout
    assert {path: path.stat().st_mtime for path in folder.rglob("summary.json")} == times
    assert results(folder) == before


@pytest.mark.slow
def test_killed_comparison_resumes_to_the_same_table(study: tuple[Path, str], tmp_path: Path) -> None:
    words = ("objective=[kd,dkd]", "seeds=2", "shuffled=true")
    for wanted in (1, 4):
        process = start(tmp_path, *words)
        for _ in range(600):
            if len(list(tmp_path.glob("runs/compare/*/*/*/summary.json"))) >= wanted or process.poll() is not None:
                break
            time.sleep(0.1)
        time.sleep(0.4)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(tmp_path, *words)
    _, complained = process.communicate(timeout=300)
    assert process.returncode == 0, complained
    same = [{key: value for key, value in row.items() if "folder" not in key} for row in results(tmp_path)]
    assert same == [{key: value for key, value in row.items() if "folder" not in key} for row in results(study[0])]


BAD = {
    ("objective=[kd,dkdd]",): "unknown choice objective=dkdd; did you mean objective=dkd?",
    ("seed=3",): "set seeds instead, for example seeds=5",
    ("seeds=0",): "seeds must be a count of at least 1",
    ("shuffled=yes",): "shuffled must be true or false",
    ("teacher=none",): "a comparison needs a teacher",
    ("objective=ce",): "objective: name at least one to compare with scratch",
    ("optim.lr=-1",): "optim: lr must be a finite number above 0",
    ("--cfg", "job"): "kd-compare takes overrides of kd-train and its own",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_bad_input_gives_a_one_line_error(
    words: tuple[str, ...], complain: Complain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert BAD[words] in complain(*words, command="compare")
    assert not list(tmp_path.rglob("summary.json"))


def test_a_study_of_another_configuration_is_not_mixed_in(
    study: tuple[Path, str], complain: Complain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study[0])
    (runs,) = study[0].glob("runs/compare/*")
    teacher = next((study[0] / "runs/teachers").iterdir())
    words = (*SMALL, "seeds=3", f"study={runs}", "student.width=8", f"teacher.checkpoint={teacher}")
    assert "contains a run with student.width=16, not 8; set another study=FOLDER" in complain(
        *words, command="compare"
    )
