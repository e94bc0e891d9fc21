"""What a run refuses to lose: other experiments, NaN, full disks, damaged and foreign files."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import WORDS, finite, launched
from conftest import Complain, Run
from fork import kd_train_in
from paths import TESTS

import kd
from kd.callbacks.checkpoint import AtomicCheckpointIO, Last
from kd.run_folder.checkpoints import latest


def test_stopped_run_has_a_checkpoint_and_no_summary(copy: Path) -> None:
    found = latest(copy / "run")
    assert found is not None
    assert found.content["global_step"] == 10
    assert found.content["kd"]["format_version"] == 1
    assert {"torch", "pytorch-lightning", "hydra-core"} <= found.content["kd"]["versions"].keys()
    assert len(found.content["kd"]["data_sha256"]) == 64
    assert not (copy / "run/summary.json").exists()


def test_same_options_or_more_epochs_are_the_same_experiment(copy: Path) -> None:
    on = launched(copy, "resume=run", "data.batch_size=16", "optim.lr=0.05")
    assert on.returncode == 0, on.stderr
    assert json.loads((copy / "run/summary.json").read_text())["training"]["steps"] == 14
    again = launched(copy, "resume=run")
    assert again.returncode == 0
    assert "run is already finished; epochs=N trains for longer" in again.stdout
    longer = kd_train_in(copy, ["resume=run", "epochs=3"], {})
    assert longer.returncode == 0, longer.stderr
    assert json.loads((copy / "run/summary.json").read_text())["training"]["steps"] == 21


def test_existing_run_folder_is_not_overwritten(copy: Path, complain: Complain) -> None:
    line = complain(*WORDS, "hydra.run.dir=done")
    assert line == "error: done already contains a run: resume it with resume=done, or set another hydra.run.dir"


def _limit(megabytes: float) -> Any:
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (int(megabytes * 1e6), int(megabytes * 1e6)))


def test_file_size_limit_preserves_the_previous_checkpoint(tmp_path: Path) -> None:
    done = launched(
        tmp_path, "callbacks.last.steps=2", "trainer.max_epochs=4", "hydra.run.dir=run", before=_limit(0.04)
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert "checkpoints/" in line
    assert "cannot be written: File too large" in line
    assert not list((tmp_path / "run/checkpoints").glob("*"))


def test_checkpoint_replacement_is_atomic(tmp_path: Path) -> None:
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    files.save_checkpoint({"a": torch.ones(3)}, path)

    class Unwritable:
        def __reduce__(self) -> Any:
            raise OSError(28, "No space left on device")

    with pytest.raises(kd.errors.TrainingFailed, match="No space left on device; the previous one is kept"):
        files.save_checkpoint({"a": torch.zeros(3), "b": Unwritable()}, path)
    assert torch.equal(files.load_checkpoint(path)["a"], torch.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """A file system of 3 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_too_small_disk_is_reported_before_training(tmp_path: Path, small: Path) -> None:
    done = launched(tmp_path, "student=resnet20", f"hydra.run.dir={small}/run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no space left for checkpoints: " in line
    assert "two checkpoints need about 6.6 MB" in line


@pytest.mark.slow
def test_disk_full_during_training(tmp_path: Path, small: Path) -> None:
    words = ("student=resnet8", "callbacks.last.steps=1", "trainer.max_epochs=6", f"hydra.run.dir={small}/run")
    filler = f"+callbacks.filler={{_target_: saboteur.Filler, file: {small}/rest, step: 20}}"
    done = launched(tmp_path, *words, filler)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot be written: No space left on device" in line
    assert finite(small / "run") == 20
    (small / "rest").unlink()
    on = launched(tmp_path, f"resume={small}/run", "trust=true")
    assert on.returncode == 0, on.stderr


@pytest.mark.slow
def test_full_disk_stops_tensorboard_but_not_the_run(tmp_path: Path, small: Path) -> None:
    (small / "rest").write_bytes(b"x" * (3 * 2**20 - 20_000))
    words = (f"+logger.tensorboard.save_dir={small}", "trainer.max_epochs=8", "hydra.run.dir=run")
    done = launched(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("the curves end here, training continues") == 1
    assert (tmp_path / "run/summary.json").exists()


def test_unwritable_folder(tmp_path: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in complain(*WORDS, "hydra.run.dir=file/run")


@pytest.mark.parametrize("word", ["minutes=0", "steps=-1", "steps=0"])
def test_the_times_of_saving_are_positive(complain: Complain, word: str) -> None:
    assert f"callbacks.last: {word.partition('=')[0]} must be above 0" in complain(f"callbacks.last.{word}")


def test_first_released_checkpoint_format_loads(tmp_path: Path, kd_train: Run) -> None:
    """``formats/1``: what version 1 of checkpoints and summaries left behind, one run finished and one stopped."""
    shutil.copytree(TESTS / "formats/1", tmp_path, dirs_exist_ok=True)
    assert kd.load(tmp_path / "done")(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 4)
    on = kd_train("resume=stopped")
    assert on.returncode == 0, on.stderr
    assert "resume: from step 10" in on.stdout


def test_resume_last_reports_the_chosen_run() -> None:
    with pytest.raises(kd.errors.InputError, match="steps must be above 0"):
        Last("here", steps=0)
