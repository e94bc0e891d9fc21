"""A run that is interrupted at any moment and resumed ends bit for bit as an uninterrupted one."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import begun, kd_train_in
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PATH = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
QUIET = ("trainer.enable_progress_bar=false", "callbacks.pictures=null", "trainer.log_every_n_steps=2")
MEMORY = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60"),
    *("data.batch_size=16", "data.pad=1", "data.flip=true", "teacher=resnet8", "teacher.epochs=3"),
    *("teacher.min_accuracy=0", "epochs=3", *QUIET),
)
WITNESS = ("+callbacks.witness._target_=saboteur.Witness",)


def run(folder: Path, *words: str, fresh: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """``kd-train`` as a user's shell would run it."""
    return kd_train_in(folder, words, {"COLUMNS": "120", "PYTHONPATH": PATH, **environment}, fresh=fresh)


def whole(folder: Path, name: str, *words: str, fresh: bool = True) -> Path:
    """An uninterrupted run, of a teacher that is there before; where ``fresh`` with another order of sets."""
    warm = run(folder, *words, "trainer.max_epochs=2", "hydra.run.dir=warm", fresh="trainer.devices=2" in words)
    assert warm.returncode == 0, warm.stderr
    done = run(folder, *words, *WITNESS, f"+callbacks.witness.file={name}.txt", f"hydra.run.dir={name}", fresh=fresh)
    assert done.returncode == 0, done.stderr
    return folder / name


def interrupted(folder: Path, name: str, strike: Mapping[str, Any], *words: str) -> Path:
    """The same run, struck once and then gone on with."""
    sabotage = [f"+callbacks.saboteur.{key}={value}" for key, value in strike.items()]
    sabotage += ["+callbacks.saboteur._target_=saboteur.Saboteur", f"+callbacks.saboteur.mark={name}.mark"]
    witness = (*WITNESS, f"+callbacks.witness.file={name}.txt")
    struck = run(folder, *words, *sabotage, *witness, f"hydra.run.dir={name}")
    signum = strike.get("signum", signal.SIGKILL)
    assert struck.returncode == (-9 if signum == signal.SIGKILL else 128 + signum), (name, struck.stderr)
    if signum != signal.SIGKILL:
        (line,) = struck.stderr.splitlines()
        assert f"resume with: kd-train resume={name}" in line
    on = run(folder, f"resume={name}", "trust=true")
    assert on.returncode == 0, (name, on.stderr)
    return folder / name


def steps_of(run: Path) -> dict[tuple[str, str], list[str]]:
    """What the witness saw of each batch; what was done twice must have been the same twice."""
    seen: dict[tuple[str, str], list[str]] = {}
    for line in run.with_suffix(".txt").read_text().splitlines():
        epoch, batch, *rest = line.split()
        assert seen.setdefault((epoch, batch), rest) == rest, f"{run.name}: epoch {epoch} batch {batch}"
    return seen


def curves_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them, without those of the clock."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def plain(content: Any, folder: Path) -> Any:
    """Containers without clocks, test callbacks and the folder's own path; tensors as type and numbers."""
    if isinstance(content, torch.Tensor):
        return str(content.dtype), content.tolist()
    if isinstance(content, Mapping):
        kept = {str(key).replace(str(folder), ""): value for key, value in content.items() if key != "seconds"}
        return {key: plain(value, folder) for key, value in kept.items() if "Saboteur" not in key}
    if isinstance(content, (list, tuple)):
        return [plain(part, folder) for part in content]
    return content.replace(str(folder), "") if isinstance(content, str) else content


def as_if_nothing_happened(struck: Path, full: Path) -> None:
    """Every step, every tensor of the last checkpoint and of the best, the student, the curves and the summary."""
    assert steps_of(struck) == steps_of(full)
    for name in ("last", "best"):
        mine, its = (
            plain(torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True), path) for path in (struck, full)
        )
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "callbacks"):
            assert mine[key] == its[key], f"{struck.name}: {key} of {name}.ckpt"
    assert curves_of(struck) == curves_of(full)
    assert (struck / "history.csv").read_text() == (full / "history.csv").read_text()
    mine, its = (plain(load_file(path / "student.safetensors"), path) for path in (struck, full))
    assert mine == its
    mine, its = (json.loads((path / "summary.json").read_text()) for path in (struck, full))
    assert mine["metrics"] == its["metrics"]
    assert {**mine["training"], "seconds": 0, "images_per_s": 0} == {**its["training"], "seconds": 0, "images_per_s": 0}


def pictures(folder: Path) -> None:
    """Small class folders."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 10)):
        for label in range(3):
            place = folder / "pictures" / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (20, 20, 3), dtype=np.uint8) + np.uint8(60 * label)
                Image.fromarray(pixels).save(place / f"{number}.png")


FOLDER = (
    *("data=folder", "data.root=pictures", "data.size=16", "data.batch_size=8", "data.val=0.2", "teacher=resnet8"),
    *("teacher.epochs=2", "teacher.min_accuracy=0", "student=cnn", "epochs=3", *QUIET),
)
# 56 images are 7 batches: the struck batch is in the middle of the second epoch, or its last
MOMENTS: dict[str, dict[str, Any]] = {
    "mid-epoch": {"moment": "step", "epoch": 1, "batch": 4},
    "last-batch": {"moment": "step", "epoch": 1, "batch": 6},
    "validation": {"moment": "validation", "epoch": 1, "batch": 1},
    "between": {"moment": "between", "epoch": 2},
}
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_after_any_signal_at_any_moment(tmp_path: Path, workers: int, accumulate: int) -> None:
    pictures(tmp_path)
    words = (*FOLDER, f"data.workers={workers}", f"trainer.accumulate_grad_batches={accumulate}")
    words += ("callbacks.last.steps=2",)
    full = whole(tmp_path, "full", *words)

    def case(of: tuple[str, str]) -> None:
        name, moment = f"{of[0]}-{of[1]}", MOMENTS[of[1]]
        struck = interrupted(tmp_path, name, {**moment, "signum": int(SIGNALS[of[0]])}, *words)
        as_if_nothing_happened(struck, full)

    with ThreadPoolExecutor(2) as two:
        list(two.map(case, itertools.product(SIGNALS, MOMENTS)))


CASES = {
    "ema": ("callbacks=ema",),
    "crd": ("objective=crd", "objective.crd.negatives=20"),
    "stages": ("objective=ft", "init_epochs=1"),
    "learned-temperature": ("objective=ctkd",),
    "mixup": ("data.mixup=0.4",),
    "dropout": ("student=import", "student.path=saboteur:Wide"),
    "skipped-updates": ("nan=skip", "+callbacks.poison={_target_: saboteur.Poison, step: 3, times: 2}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_resume_restores_every_stateful_part(tmp_path: Path, name: str) -> None:
    words = (*MEMORY, *CASES[name], "callbacks.last.steps=2")  # of the default student, cnn
    full = whole(tmp_path, "full", *words)
    strike = {"moment": "step", "epoch": 1, "batch": 4}
    as_if_nothing_happened(interrupted(tmp_path, "struck", strike, *words), full)


@pytest.mark.slow
def test_resume_after_kills_in_the_first_epoch_and_in_the_test(tmp_path: Path) -> None:
    full = whole(tmp_path, "full", *MEMORY)
    struck = interrupted(tmp_path, "early", {"moment": "step", "epoch": 0, "batch": 1}, *MEMORY)
    as_if_nothing_happened(struck, full)
    struck = interrupted(tmp_path, "late", {"moment": "test", "epoch": 3}, *MEMORY)
    as_if_nothing_happened(struck, full)


def _kill_while_saving(process: ForkServerProcess, checkpoints: Path, delay: float) -> None:
    """Kills the process ``delay`` seconds after a file that is being written has begun to grow."""
    while process.exitcode is None:
        growing = [path for path in checkpoints.glob(".last.ckpt.*.tmp") if path.exists()]
        if growing:
            time.sleep(delay)
            process.kill()
            process.join()
            return
        time.sleep(0.0005)
    raise AssertionError("the run ended before it could be killed")


@pytest.mark.slow
def test_resume_after_twenty_kills_during_saves(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    words = (
        *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60"),
        *("student=import", "student.path=saboteur:wider", "objective=ce", "teacher=none", "data.batch_size=16"),
        *("epochs=3", "callbacks.last.steps=1", *QUIET),
    )
    full = whole(tmp_path, "full", *words)
    draw, torn = random.Random(0), 0
    start = [*words, *WITNESS, "+callbacks.witness.file=struck.txt", "hydra.run.dir=struck"]
    environment = {**os.environ, "PYTHONPATH": PATH, "TMPDIR": str(elsewhere), "OMP_NUM_THREADS": "2"}
    for _ in range(20):
        there = (tmp_path / "struck/config.yaml").exists()
        process = begun(tmp_path, ["resume=struck", "trust=true"] if there else start, environment)
        _kill_while_saving(process, tmp_path / "struck/checkpoints", draw.uniform(0, 0.03))
        torn += bool(list((tmp_path / "struck/checkpoints").glob(".*.tmp")))
        for path in (tmp_path / "struck/checkpoints").glob("*.ckpt"):
            torch.load(path, weights_only=True)
    assert torn > 10  # else the kills came at other times
    done = run(tmp_path, "resume=struck", "trust=true", TMPDIR=str(elsewhere), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "struck/checkpoints").glob(".*.tmp"))
    for name in ("last", "best"):
        mine, its = (
            torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True) for path in (tmp_path / "struck", full)
        )
        assert mine["global_step"] == its["global_step"]
        assert all(
            torch.allclose(mine["state_dict"][key], its["state_dict"][key], atol=1e-5) for key in its["state_dict"]
        )


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    words = (*MEMORY, "trainer.max_epochs=2000", *WITNESS, "+callbacks.witness.file=run.txt", "hydra.run.dir=run")
    command = [sys.executable, "-m", "kd.cli", *words]
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    while not (tmp_path / "run/checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) in (128 + signal.SIGTERM, 128 + signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 1])
def test_two_processes_resume(tmp_path: Path, after: int) -> None:
    ddp = ("trainer.devices=2", "trainer.strategy=ddp", "data.train=280", "trainer.log_every_n_steps=1")
    words = (*MEMORY, *ddp, "callbacks.last.steps=2")
    full = whole(tmp_path, "full", *words)
    strike = {"moment": "step", "epoch": 1, "batch": 3, "signum": int(signal.SIGTERM)}
    sabotage = [f"+callbacks.saboteur.{key}={value}" for key, value in strike.items()]
    sabotage += ["+callbacks.saboteur._target_=saboteur.Saboteur", "+callbacks.saboteur.mark=mark"]
    words = (*words, *sabotage, *WITNESS, "+callbacks.witness.file=struck.txt", "hydra.run.dir=struck")
    struck = run(tmp_path, *words, fresh=True)
    assert struck.returncode == 143, struck.stderr
    (line,) = (line for line in struck.stderr.splitlines() if "Initializing distributed" not in line)
    assert "resume with: kd-train resume=struck" in line
    on = run(tmp_path, "resume=struck", "trust=true", f"trainer.devices={after}", fresh=True)
    assert on.returncode == 0, on.stderr
    if after == 2:
        as_if_nothing_happened(tmp_path / "struck", full)
        assert steps_of(tmp_path / "struck.1") == steps_of(tmp_path / "full.1")
    given = [line.split() for name in ("struck.txt", "struck.1.txt") for line in (tmp_path / name).open()]
    samples = [sample for epoch, _, _, index, _ in given if epoch == "1" for sample in index.split(",")]
    assert len(samples) == len(set(samples)) == 252 // (16 * after) * 16 * after  # of 252, in whole steps
