"""Resumed runs in less usual configurations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import launched
from conftest import Complain
from fork import kd_train_in
from paths import PYTHONPATH
from safetensors.torch import load_file
from test_compare import compared
from test_resume import FOLDER, as_if_nothing_happened, interrupted, pictures, whole

import kd
from kd.distill.distiller import Distiller

SMALL = ("data.pad=1", "callbacks.pictures=null")
EXACT = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60", "data.batch_size=16"),
    *("teacher=none", "objective=ce", "epochs=3", "trainer.enable_progress_bar=false", "callbacks.last.steps=2"),
    *("trainer.log_every_n_steps=2", *SMALL),
)
SWA = "+callbacks.swa={_target_: pytorch_lightning.callbacks.StochasticWeightAveraging, swa_lrs: 0.05}"


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def resume(folder: Path, *words: str) -> Any:
    """``kd-train resume=run`` and nothing but ``words``."""
    return kd_train_in(folder, ["resume=run", "trust=true", *words], {"PYTHONPATH": PYTHONPATH})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs in ``run``, with curves in CSV."""
    folder = tmp_path_factory.mktemp("done")
    ended = launched(folder, *SMALL, "logger=csv", "hydra.run.dir=run")
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_run_with_batch_size_search_saves_its_best_student(tmp_path: Path) -> None:
    words = ("callbacks=batch_size", "callbacks.batch_size.start=8", "callbacks.batch_size.most=32", *SMALL)
    run = launched(tmp_path, *words, "hydra.run.dir=run")
    assert run.returncode == 0, run.stderr
    assert summary_of(tmp_path / "run")["data"]["config"]["batch_size"] == 32
    assert summary_of(tmp_path / "run")["metrics"]["chosen"] == "at the best validation epoch"
    longer = resume(tmp_path, "epochs=3")
    assert longer.returncode == 0, longer.stderr
    assert summary_of(tmp_path / "run")["training"]["steps"] == 3 * (126 // 32)


def test_a_run_in_float64_is_resumed_from_weights_in_float64(tmp_path: Path) -> None:
    words = (*EXACT, "trainer.precision=64-true")
    full = whole(tmp_path, "full", *words, fresh=False)
    struck = interrupted(tmp_path, "struck", {"moment": "step", "epoch": 1, "batch": 4}, *words)
    as_if_nothing_happened(struck, full)


@pytest.mark.parametrize("average", ["callbacks=ema", SWA])
def test_weights_in_float64_are_averaged_in_float64(tmp_path: Path, average: str) -> None:
    run = launched(tmp_path, *SMALL, "epochs=3", "trainer.precision=64-true", average, "hydra.run.dir=run")
    assert run.returncode == 0, run.stderr
    left = [value for value in load_file(tmp_path / "run/student.safetensors").values() if value.is_floating_point()]
    assert all(value.dtype == torch.float64 for value in left)
    assert any(not torch.equal(value, value.float().double()) for value in left)


@pytest.mark.parametrize("typed", [(), ("epochs=3",)], ids=["resumed", "extended"])
def test_finished_run_without_checkpoints_is_not_retrained(
    copy: Path, complain: Complain, typed: tuple[str, ...]
) -> None:
    shutil.rmtree(copy / "run/checkpoints")
    before = (copy / "run/student.safetensors").read_bytes()
    if typed:
        assert "run has been trained, but its checkpoints/last.ckpt is missing" in complain("resume=run", *typed)
    else:
        assert resume(copy).returncode == 0
    assert (copy / "run/student.safetensors").read_bytes() == before


def test_untested_run_without_checkpoints_is_not_retrained(copy: Path, complain: Complain) -> None:
    summary = summary_of(copy / "run")
    summary["metrics"] |= {"test": None, "untested": "a damaged picture"}
    (copy / "run/summary.json").write_text(json.dumps(summary))
    shutil.rmtree(copy / "run/checkpoints")
    assert "its checkpoints/last.ckpt is missing" in complain("resume=run")


def test_run_killed_before_its_first_checkpoint_reports_a_restart(copy: Path) -> None:
    shutil.rmtree(copy / "run/checkpoints")
    (copy / "run/summary.json").unlink()
    on = resume(copy)
    assert on.returncode == 0, on.stderr
    assert "run has no checkpoint yet" in on.stdout


@pytest.mark.parametrize("name", ["last", "previous"])
def test_best_and_last_checkpoints_have_different_names(complain: Complain, name: str) -> None:
    words = ("data=digits", "teacher=none", "objective=ce", f"callbacks.best.filename={name}")
    assert f"callbacks.best.filename={name} is reserved for the checkpoint" in complain(*words)


@pytest.mark.parametrize("moved", [False, True])
def test_damaged_best_checkpoint_is_reported_before_training(tmp_path: Path, complain: Complain, moved: bool) -> None:
    place = "first" if moved else "run"
    assert launched(tmp_path, *SMALL, "callbacks.best.filename=mine", f"hydra.run.dir={place}").returncode == 0
    if moved:
        shutil.move(tmp_path / "first", tmp_path / "run")
    best = tmp_path / "run/checkpoints/mine.ckpt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    assert "mine.ckpt is damaged" in complain("resume=run", "epochs=3")
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        (None, 0),
        ({"seed": 3}, 3),
        ({"config": {"seed": 4}, "files": {}}, 4),
        ({"config": "mine.yaml", "seed": None}, 0),
    ],
)
def test_dropout_is_drawn_from_the_seed_of_the_run(config: dict[str, Any] | None, seed: int) -> None:
    student, loss = kd.models["cnn"](3, 1), kd.losses["ce"]()
    assert Distiller(student, None, loss, shape=[1, 8, 8], classes=3, config=config).seed == seed


def test_resumed_run_uses_a_best_checkpoint_in_a_subfolder(tmp_path: Path) -> None:
    words = (*SMALL, "callbacks.best.filename=below/best", "hydra.run.dir=first")
    assert launched(tmp_path, *words).returncode == 0
    shutil.move(tmp_path / "first", tmp_path / "run")
    longer = resume(tmp_path, "epochs=3", "optim.lr=0.05")
    assert longer.returncode == 0, longer.stderr
    assert "is missing" not in longer.stdout
    assert (tmp_path / "run/checkpoints/below/best.ckpt").is_file()
    assert summary_of(tmp_path / "run")["metrics"]["chosen"] == "at the best validation epoch"


def test_resumed_run_does_not_announce_deleting_its_curves(copy: Path) -> None:
    longer = resume(copy, "epochs=3")
    assert longer.returncode == 0
    assert "deleted" not in longer.stderr
    assert len((copy / "run/csv/metrics.csv").read_text().splitlines()) > 6


@pytest.mark.parametrize("epochs", [0, -1])
def test_epochs_out_of_range_are_refused_where_a_run_is_resumed(copy: Path, complain: Complain, epochs: int) -> None:
    assert "epochs" in complain("resume=run", f"epochs={epochs}")


def test_run_limited_in_steps_names_the_option_to_extend_it(copy: Path) -> None:
    by_steps = resume(copy, "epochs=9", "trainer.max_steps=16")
    assert by_steps.returncode == 0, by_steps.stderr
    again = resume(copy, "epochs=12")
    assert "trainer.max_steps=16 is reached; a higher value" in again.stdout


def test_trainer_length_and_epochs_combine_as_in_a_new_run(copy: Path) -> None:
    assert resume(copy, "epochs=3", "trainer.max_epochs=4").returncode == 0
    assert summary_of(copy / "run")["training"]["epochs"] == 4


def test_a_study_of_another_configuration_is_refused_before_its_teacher_is_trained(tmp_path: Path) -> None:
    def compare(*more: str) -> tuple[int, str]:
        done = compared(tmp_path, "objective=[kd]", "seeds=1", "study=st", *more)
        return done.returncode, done.stderr

    teachers = tmp_path / "runs/teachers"
    assert compare()[0] == 0
    assert len(list(teachers.iterdir())) == 1
    code, complained = compare("optim.lr=0.3")
    assert code == 2
    assert "set another study=" in complained
    assert len(list(teachers.iterdir())) == 1
    shutil.rmtree(teachers)
    assert compare()[0] == 0
    assert not teachers.exists()


def test_resume_with_moved_pictures(tmp_path: Path) -> None:
    pictures(tmp_path)
    taught = [word for word in FOLDER if not word.startswith(("teacher", "epochs"))]
    begun = [*taught, "teacher=none", "objective=ce", "epochs=1", "hydra.run.dir=run"]
    assert kd_train_in(tmp_path, begun, {}).returncode == 0
    shutil.move(tmp_path / "pictures", tmp_path / "elsewhere")
    on = resume(tmp_path, "epochs=2", "data.root=elsewhere", "data.workers=0")
    assert on.returncode == 0, on.stderr
    assert summary_of(tmp_path / "run")["training"]["epochs"] == 2
    assert summary_of(tmp_path / "run")["data"]["config"]["root"] == "elsewhere"


@pytest.mark.parametrize("word", ["data.size=24", "data.rot=x", "optim.lr=1", "objective.ce.weight=2"])
def test_resume_error_names_the_differing_option(copy: Path, complain: Complain, word: str) -> None:
    assert f"different experiment: {word.partition('=')[0]} (" in complain("resume=run", word)
