"""What an earlier version left behind, ``formats/2``, is worth the same to this one, by the commands that users type.

Nothing here knows where kd keeps its code. ``formats/make.py`` says what the folders are and how they were made.
"""

from __future__ import annotations

import csv
import json
import os
import runpy
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fork import FORKS
from paths import ROOT, TESTS
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

EARLIER = TESTS / "formats/2"
WORDS = json.loads((EARLIER / "words.json").read_text())
(TEACHER,) = (path.name for path in (EARLIER / "teachers").iterdir())
(CACHE,) = (path.name for path in (EARLIER / "cache").iterdir())
(STUDY,) = (path.name for path in (EARLIER / "compare").iterdir())
# how far numbers may lie apart on another machine, where sums round otherwise
CLOSE = {torch.float64: 1e-7, torch.float32: 1e-5, torch.float16: 1e-3}
SCORE = CLOSE[torch.float32]
# the clock's, and where classes lie now
FREE = ("seconds", "images_per_s", "latency_ms", "_target_")
BEST = "Best{'monitor': 'val/acc', 'mode': 'max', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
BEST += "'train_time_interval': None}"


def kd(place: Path, command: str, *words: str) -> str:
    """``kd-COMMAND WORDS`` in a folder, without trust in it; what it said."""
    out, err = place / "stdout", place / "stderr"
    process = FORKS.Process(target=_command, args=(str(place), command, words, str(out), str(err)))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, (process.exitcode, words, out.read_text(), err.read_text())
    return out.read_text()


def _command(place: str, command: str, words: tuple[str, ...], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(place)
    os.environ |= {"COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    sys.argv = [f"kd-{command}", *words]
    torch.set_num_threads(1)
    runpy.run_path(str(ROOT / f"scripts/{command}.py"), run_name="__main__")


def laid_out(place: Path) -> Path:
    """A folder in which a user worked with the earlier version."""
    for name in ("stopped", "done"):
        shutil.copytree(EARLIER / name, place / name)
    for name in ("teachers", "cache", "compare"):
        shutil.copytree(EARLIER / name, place / "runs" / name)
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return laid_out(tmp_path)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The stopped run, gone on with to its end, and what was said."""
    place = laid_out(tmp_path_factory.mktemp("resumed"))
    said = kd(place, "train", "resume=stopped")
    return place / "stopped", said


def contents(folder: Path) -> dict[str, bytes]:
    """All files but for locks, which are empty or not."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, numbers as such."""
    with path.open() as file:
        return [{key: number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def the_same(mine: Any, its: Any, at: str) -> None:
    """Whether all that the earlier version wrote is there with the same value; a later one may have added to it."""
    if isinstance(its, Mapping):
        for key, value in its.items():
            if key not in FREE:
                assert key in mine, f"{at}.{key} is absent"
                the_same(mine[key], value, f"{at}.{key}")
    elif isinstance(its, (list, tuple)):
        assert len(mine) == len(its), at
        for i, (own, other) in enumerate(zip(mine, its)):
            the_same(own, other, f"{at}[{i}]")
    elif isinstance(its, Tensor):
        assert mine.dtype == its.dtype, at
        if its.is_floating_point():
            assert torch.allclose(mine, its, rtol=CLOSE[its.dtype], atol=CLOSE[its.dtype]), at
        else:
            assert torch.equal(mine, its), at
    elif isinstance(its, float):
        assert mine == pytest.approx(its, rel=SCORE, abs=SCORE), at
    else:
        assert mine == its, at


def the_same_scores(mine: Path, its: Path) -> None:
    """The history to its last line, the summary's scores and the answers on the test part."""
    the_same(rows_of(mine / "history.csv"), rows_of(its / "history.csv"), "history.csv")
    before, now = (json.loads((path / "summary.json").read_text()) for path in (its, mine))
    for part in ("metrics", "student", "teacher", "training", "seed"):
        the_same(now[part], before[part], f"summary.json: {part}")
    before, now = (load_file(path / "predictions.safetensors") for path in (its, mine))
    the_same(now, before, "predictions.safetensors")


def the_same_student(mine: Path, its: Path) -> None:
    before, now = (load_file(path / "student.safetensors") for path in (its, mine))
    assert now.keys() == before.keys()
    the_same(now, before, "student.safetensors")


def last_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def apart(mine: Mapping[str, Tensor], its: Mapping[str, Tensor]) -> float:
    """How far tensors lie apart at most."""
    return max(float((mine[key].double() - its[key].double()).abs().max()) for key in its)


def test_a_stopped_run_ends_as_if_nothing_had_happened(resumed: tuple[Path, str]) -> None:
    run, said = resumed
    assert "resume: from step 18" in said
    assert not (EARLIER / "stopped/summary.json").exists()
    the_same_scores(run, EARLIER / "whole")
    the_same_student(run, EARLIER / "whole")


def test_its_best_epoch_is_one_that_the_earlier_version_trained(resumed: tuple[Path, str]) -> None:
    run, _ = resumed
    best = torch.load(EARLIER / "stopped/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 15
    assert json.loads((run / "summary.json").read_text())["metrics"]["best"]["step"] == 15
    kept = {key.removeprefix("student.net."): value for key, value in best["state_dict"].items()}
    student = load_file(run / "student.safetensors")
    assert apart(student, {key: kept[key] for key in student}) == 0


@pytest.mark.parametrize(
    "part", ["state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "loops"]
)
def test_its_last_checkpoint_is_that_of_the_undisturbed_run(resumed: tuple[Path, str], part: str) -> None:
    the_same(last_of(resumed[0])[part], last_of(EARLIER / "whole")[part], part)


def test_its_callbacks_end_in_the_same_states(resumed: tuple[Path, str]) -> None:
    mine, its = (last_of(run)["callbacks"] for run in (resumed[0], EARLIER / "whole"))
    assert its.keys() == {"Record", "Gate", "Finite", "EMA", BEST}
    assert its["Finite"] == {"skipped": 1}  # by what is no longer there
    for key in ("Record", "Gate", "Finite", "EMA"):
        the_same(mine[key], its[key], key)
    here = str(resumed[0].resolve() / "checkpoints/best.ckpt")
    for key in ("best_model_path", "kth_best_model_path"):
        assert mine[BEST][key] == here
    for key in ("best_model_score", "current_score", "kth_value"):
        the_same(mine[BEST][key], its[BEST][key], key)
    for key in ("best_k_models", "tied"):
        assert list(mine[BEST][key]) == [here]
        the_same(list(mine[BEST][key].values()), list(its[BEST][key].values()), key)


def test_the_states_of_callbacks_come_out_of_the_checkpoint(place: Path) -> None:
    """Values that training would not come to are put there, and are found again in the end."""
    run = place / "stopped"
    content = last_of(run)
    del content["kd"]["sha256"]  # as before it was kept: else the file would be called damaged
    average, trained = content["state_dict"], content["current_model_state"]
    assert apart(average, trained) > 1e-3
    states, planted = content["callbacks"], torch.tensor(0.9)
    states["Record"]["epochs"][0]["val/acc"] = 0.8125
    states["Record"]["images"] += 5000
    states["Gate"]["accuracy"]["planted"] = 0.25
    states["Finite"]["skipped"] = 7
    states["EMA"]["latest_update_step"] = 19  # so that of two steps to come the average takes only the last in
    (path,) = states[BEST]["best_k_models"]
    states[BEST] |= {"best_model_score": planted, "kth_value": planted, "best_k_models": {path: planted}}
    torch.save(content, run / "checkpoints/last.ckpt")
    kd(place, "train", "resume=stopped")
    ended, whole = last_of(run), last_of(EARLIER / "whole")
    assert rows_of(run / "history.csv")[0]["val/acc"] == 0.8125
    found = ended["callbacks"]
    assert found["Record"]["images"] == whole["callbacks"]["Record"]["images"] + 5000
    the_same(found["Gate"]["accuracy"], {**whole["callbacks"]["Gate"]["accuracy"], "planted": 0.25}, "Gate")
    assert found["Finite"] == {"skipped": 7}
    assert float(found[BEST]["best_model_score"]) == pytest.approx(0.9)
    count = int(content["averaging_state"]["n_averaged"])
    assert int(ended["averaging_state"]["n_averaged"]) == count + 1
    share = (1 + count) / (10 + count)
    now = ended["current_model_state"]
    the_same(now, whole["current_model_state"], "current_model_state")
    expected = {key: share * average[key] + (1 - share) * now[key] for key in now if now[key].is_floating_point()}
    the_same(ended["state_dict"], expected, "state_dict")


def test_a_finished_run_is_known_as_finished_and_goes_on_for_longer(place: Path) -> None:
    before = contents(place / "done")
    assert "done is already finished" in kd(place, "train", "resume=done")
    assert contents(place / "done") == before
    assert "resume: from step 20" in kd(place, "train", "resume=done", "epochs=5")
    rows = rows_of(place / "done/history.csv")
    assert rows[:4] == rows_of(EARLIER / "done/history.csv")
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25]


def test_a_finished_run_is_worth_the_same(place: Path) -> None:
    kd(place, "evaluate", "run=done", "out=evaluation")
    now, before = (json.loads((path / "evaluation/evaluation.json").read_text()) for path in (place, EARLIER))
    del before["versions"]
    the_same(now, before, "evaluation.json")
    assert now["teacher"]["measured"]


def test_a_finished_run_is_exported_as_it_was_trained(place: Path) -> None:
    from sklearn.datasets import load_digits

    kd(place, "export", "run=done", "format=torch_export", "out=program")
    answers = load_file(EARLIER / "done/predictions.safetensors")
    pixels = np.round(load_digits().images[-len(answers["labels"]) :] * (255 / 16)).astype(np.uint8)
    (file,) = (place / "program").glob("*.pt2")
    logits = torch.export.load(file).module()(torch.from_numpy(pixels).unsqueeze(1).float() / 255)
    the_same(logits.half(), answers["student"], "logits")
    worth = json.loads((EARLIER / "evaluation/evaluation.json").read_text())["metrics"]
    the_same(float(cross_entropy(logits, answers["labels"])), worth["nll"], "nll")


def test_a_study_is_reported_as_it_was(place: Path) -> None:
    kd(place, "report", f"runs=runs/compare/{STUDY}", "out=report")
    the_same(rows_of(place / "report/results.csv"), rows_of(EARLIER / f"compare/{STUDY}/results.csv"), "results.csv")
    assert (place / "report/report.html").stat().st_size > 10_000


def test_a_study_that_is_finished_is_found_by_its_words_and_trains_nothing(place: Path) -> None:
    study = place / "runs/compare" / STUDY
    before = {name: contents(place / name) for name in ("runs/teachers", "runs/cache")}
    cells = {label: contents(study / label) for label in ("scratch", "kd")}
    said = kd(place, "compare", *WORDS["compare"])
    assert f"2 of 2 runs are already finished, in runs/compare/{STUDY}" in said
    assert {name: contents(place / name) for name in before} == before
    assert {label: contents(study / label) for label in cells} == cells
    assert [path.name for path in study.parent.iterdir()] == [STUDY]
    the_same(rows_of(study / "results.csv"), rows_of(EARLIER / f"compare/{STUDY}/results.csv"), "results.csv")


def test_its_teacher_and_their_answers_are_used_again(place: Path) -> None:
    before = {name: contents(place / "runs" / name) for name in ("teachers", "cache")}
    csv_logger = [word for word in WORDS["done"] if not word.startswith("logger=")] + ["logger=csv"]
    said = kd(place, "train", *csv_logger, "hydra.run.dir=again")
    assert f"teacher: reused from runs/teachers/{TEACHER}" in said
    assert "no checkpoint, so it is trained first" not in said
    assert f"cache: runs/cache/{CACHE}, 720 views" in said
    assert {name: contents(place / "runs" / name) for name in before} == before
    hits = [row["time/cache_hits"] for row in rows_of(place / "again/csv/metrics.csv") if row["time/cache_hits"] != ""]
    assert len(hits) == 10
    assert set(hits) == {1.0}
    the_same_scores(place / "again", EARLIER / "done")
    the_same_student(place / "again", EARLIER / "done")
