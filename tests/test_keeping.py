"""What a run refuses to lose or to call a success: other experiments, NaN, full disks, torn and foreign files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Complain, Run

import kd
from kd.checkpoints import Last, WholeFiles, latest

HERE = Path(__file__).parent
WORDS = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60"),
    *("data.batch_size=16", "teacher=none", "objective=ce", "epochs=2", "trainer.enable_progress_bar=false"),
    "trainer.log_every_n_steps=2",
)
POISON = "+callbacks.poison._target_=saboteur.Poison"


def trained(folder: Path, *words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """``kd-train`` with callbacks for tests at hand."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-m", "kd.cli", *WORDS, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, **given)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped in its second epoch, ``run``, and a finished one, ``done``."""
    folder = tmp_path_factory.mktemp("stopped")
    strike = ["+callbacks.saboteur._target_=saboteur.Saboteur", "+callbacks.saboteur.moment=step"]
    strike += ["+callbacks.saboteur.epoch=1", "+callbacks.saboteur.batch=2", "+callbacks.saboteur.signum=15"]
    struck = trained(folder, *strike, "+callbacks.saboteur.mark=mark", "hydra.run.dir=run")
    assert struck.returncode == 143, struck.stderr
    config = yaml.safe_load((folder / "run/config.yaml").read_text())
    del config["callbacks"]["saboteur"]
    (folder / "run/config.yaml").write_text(yaml.safe_dump(config))
    done = trained(folder, "hydra.run.dir=done")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to spoil, as the working directory."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stopped_run_leaves_a_checkpoint_and_no_summary(copy: Path) -> None:
    found = latest(copy / "run")
    assert found is not None
    assert found.content["global_step"] == 10
    assert found.content["kd"]["format_version"] == 1
    assert {"torch", "pytorch-lightning", "hydra-core"} <= found.content["kd"]["versions"].keys()
    assert len(found.content["kd"]["data_sha256"]) == 64
    assert not (copy / "run/summary.json").exists()


OTHERS = {
    "T=2": "T (4.0 there, 2.0 here)",
    "optim.lr=0.3": "optim.lr (0.05 there, 0.3 here)",
    "optim=adamw": "optim._target_ (kd.optim.sgd there, kd.optim.adamw here)",
    "student=resnet8": "student._target_",
    "objective=label_smoothing_ce": "objective.",
    "data.batch_size=32": "data.batch_size (16 there, 32 here)",
    "experiment=cifar100/resnet56_resnet20": "data._target_",
    "seed=3": "seed (0 there, 3 here)",
}


@pytest.mark.parametrize("word", [word for word in OTHERS if "label_smoothing" not in word])
def test_another_experiment_is_refused(copy: Path, complain: Complain, word: str) -> None:
    before = (copy / "run/config.yaml").read_text()
    line = complain("resume=run", word)
    assert line.startswith("error: resume=run is another experiment: ")
    assert OTHERS[word] in line
    assert (copy / "run/config.yaml").read_text() == before


def test_the_same_words_again_and_a_longer_run_are_the_same_experiment(copy: Path) -> None:
    on = trained(copy, "resume=run", "data.batch_size=16", "optim.lr=0.05")
    assert on.returncode == 0, on.stderr
    assert json.loads((copy / "run/summary.json").read_text())["training"]["steps"] == 14
    again = trained(copy, "resume=run")
    assert again.returncode == 0
    assert "run is finished already; epochs=N goes on for longer" in again.stdout
    command = [sys.executable, "-m", "kd.cli", "resume=run", "epochs=3"]
    longer = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)
    assert longer.returncode == 0, longer.stderr
    assert json.loads((copy / "run/summary.json").read_text())["training"]["steps"] == 21


def _torn(run: Path) -> None:
    (run / "checkpoints/last.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:1000])


def _edited(path: Path, **changes: Any) -> None:
    content = torch.load(path, weights_only=True)
    content["kd"] |= changes
    torch.save(content, path)


def _both_torn(run: Path) -> None:
    _torn(run)
    (run / "checkpoints/previous.ckpt").write_bytes(b"")


SPOILED = {
    "a newer format": (
        lambda run: _edited(run / "checkpoints/last.ckpt", format_version=99),
        "last.ckpt has format 99, written by a later version of kd",
    ),
    "weights only": (
        lambda run: torch.save({"fc.weight": torch.zeros(2)}, run / "checkpoints/last.ckpt"),
        "last.ckpt is no checkpoint of a run of kd, so training cannot go on from it",
    ),
    "other data": (
        lambda run: _edited(run / "checkpoints/last.ckpt", data_sha256="0" * 64),
        "last.ckpt was trained with another data: sha256 " + "0" * 64,
    ),
    "another teacher": (
        lambda run: _edited(run / "checkpoints/last.ckpt", teacher_sha256="0" * 64),
        "last.ckpt was trained with another teacher: sha256",
    ),
    "both torn": (_both_torn, "is damaged or cut off, and there is no other whole checkpoint beside it"),
    "no configuration": (lambda run: (run / "config.yaml").unlink(), "no training has begun there"),
    "half a configuration": (lambda run: (run / "config.yaml").write_text("T: 4\n"), "config.yaml is damaged"),
    "no yaml": (lambda run: (run / "config.yaml").write_text("a: [\n"), "config.yaml is damaged"),
    "foreign code": (
        lambda run: _foreign(run / "config.yaml"),
        "callbacks.evil names 'os.system', which is not registered with kd; it is not run unless you say trust=true",
    ),
}


def _foreign(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    config["callbacks"]["evil"] = {"_target_": "os.system", "command": "touch here"}
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("what", SPOILED)
def test_what_cannot_be_gone_on_with(copy: Path, complain: Complain, what: str) -> None:
    spoil, said = SPOILED[what]
    spoil(copy / "run")
    assert said in complain("resume=run")
    assert not (copy / "here").exists()


@pytest.mark.parametrize("run", ["nowhere", "http://localhost/run", "mark"])
def test_resuming_what_is_no_run(copy: Path, complain: Complain, run: str) -> None:
    assert complain(f"resume={run}").startswith(f"error: resume={run} is no run folder")
    assert not (copy / "nowhere").exists()


def test_a_torn_checkpoint_falls_back_to_the_one_before(copy: Path) -> None:
    _torn(copy / "run")
    on = trained(copy, "resume=run")
    assert on.returncode == 0, on.stderr
    assert "last.ckpt is damaged or cut off" in on.stdout
    assert "resume: from step 7, run/checkpoints/previous.ckpt" in on.stdout


def test_a_folder_is_never_written_twice(copy: Path, complain: Complain) -> None:
    line = complain(*WORDS, "hydra.run.dir=done")
    assert line == "error: done holds a run already: go on with it by resume=done, or give another hydra.run.dir"


def test_a_run_that_is_alive_is_left_alone(copy: Path) -> None:
    script = "import fcntl, time; file = open('run/.lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
    script += "print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script], cwd=copy, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        on = trained(copy, "resume=run")
    finally:
        other.kill()
        other.wait()
    assert on.returncode == 2
    assert on.stderr == "error: another process is training in run; wait for it, or stop it first\n"


def finite(folder: Path) -> int:
    """The step of the last checkpoint, whose numbers are all finite."""
    found = latest(folder)
    assert found is not None
    assert all(value.isfinite().all() for value in found.content["state_dict"].values())
    return int(found.content["global_step"])


def test_nan_ends_the_run_before_the_update(tmp_path: Path) -> None:
    done = trained(tmp_path, POISON, "+callbacks.poison.step=10", "hydra.run.dir=run")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "the gradient of student.net.layer1" in line
    assert "is not finite, though the loss is, at step 10; nothing after step 9 was kept" in line
    assert finite(tmp_path / "run") == 7
    assert not (tmp_path / "run/summary.json").exists()


def test_a_term_that_is_not_finite_is_named(tmp_path: Path) -> None:
    done = trained(tmp_path, "optim.lr=1e30", "optim.warmup=0", "hydra.run.dir=run")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "error: the loss term ce is " in line
    assert "A lower optim.lr" in line


def test_a_few_updates_may_be_left_out(tmp_path: Path) -> None:
    few = (POISON, "+callbacks.poison.step=3", "nan=skip", "callbacks.finite.most=2")
    done = trained(tmp_path, *few, "+callbacks.poison.times=2", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "update left out (2 of 2)" in done.stdout
    assert finite(tmp_path / "run") == 14
    many = trained(tmp_path, *few, "+callbacks.poison.times=3", "hydra.run.dir=many")
    assert many.returncode == 3
    assert "at step 5, after 2 updates left out" in many.stderr


@pytest.mark.slow
def test_nan_on_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    two = ("trainer.devices=2", "trainer.strategy=ddp", "data.train=280")
    done = trained(tmp_path, *two, POISON, "+callbacks.poison.step=3", "+callbacks.poison.rank=1", "hydra.run.dir=run")
    assert done.returncode == 3
    assert done.stderr.count("at step 3") == 1


def _limit(megabytes: float) -> Any:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6), int(megabytes * 1e6)))


def test_a_file_that_cannot_grow_costs_one_line_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    done = trained(
        tmp_path, "callbacks.last.steps=2", "trainer.max_epochs=4", "hydra.run.dir=run", preexec_fn=_limit(0.04)
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert "checkpoints/" in line
    assert "cannot be written: File too large" in line
    assert not list((tmp_path / "run/checkpoints").glob("*"))


def test_a_checkpoint_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    files, path = WholeFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint({"a": torch.ones(3)}, path)

    class Unwritable:
        def __reduce__(self) -> Any:
            raise OSError(28, "No space left on device")

    with pytest.raises(kd.errors.TrainingFailed, match="No space left on device; the one before is kept"):
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
def test_a_disk_that_is_too_small_is_said_before_training(tmp_path: Path, small: Path) -> None:
    done = trained(tmp_path, "student=resnet20", f"hydra.run.dir={small}/run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no space left for checkpoints: " in line
    assert "two checkpoints need about 6.6 MB" in line


@pytest.mark.slow
def test_a_disk_that_fills_up(tmp_path: Path, small: Path) -> None:
    words = ("student=resnet8", "callbacks.last.steps=1", "trainer.max_epochs=6", f"hydra.run.dir={small}/run")
    filler = f"+callbacks.filler={{_target_: saboteur.Filler, file: {small}/rest, step: 20}}"
    done = trained(tmp_path, *words, filler)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot be written: No space left on device" in line
    assert finite(small / "run") == 20
    (small / "rest").unlink()
    on = trained(tmp_path, f"resume={small}/run", "trust=true")
    assert on.returncode == 0, on.stderr


@pytest.mark.slow
def test_a_full_disk_costs_tensorboard_and_not_the_run(tmp_path: Path, small: Path) -> None:
    (small / "rest").write_bytes(b"x" * (3 * 2**20 - 20_000))
    words = (f"+logger.tensorboard.save_dir={small}", "trainer.max_epochs=8", "hydra.run.dir=run")
    done = trained(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("the curves end here, training goes on") == 1
    assert (tmp_path / "run/summary.json").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in complain(*WORDS, "hydra.run.dir=file/run")


@pytest.mark.parametrize("word", ["minutes=0", "steps=-1", "steps=0"])
def test_the_times_of_saving_are_positive(complain: Complain, word: str) -> None:
    assert f"callbacks.last: {word.partition('=')[0]} must be above 0" in complain(f"callbacks.last.{word}")


def test_the_first_released_format_is_read(tmp_path: Path, kd_train: Run) -> None:
    """``formats/1``: what version 1 of checkpoints and summaries left behind, one run finished and one stopped."""
    shutil.copytree(HERE / "formats/1", tmp_path, dirs_exist_ok=True)
    assert kd.load(tmp_path / "done")(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 4)
    on = kd_train("resume=stopped")
    assert on.returncode == 0, on.stderr
    assert "resume: from step 10" in on.stdout


def test_last_says_what_it_takes() -> None:
    with pytest.raises(kd.errors.InputError, match="steps must be above 0"):
        Last("here", steps=0)
