"""Changes between a stop and a resume: the length, callbacks, loggers, the loader, the batch size of the search."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_runs import launched, torn
from conftest import Complain
from fork import kd_train_in
from paths import PYTHONPATH
from safetensors.torch import load_file
from test_resume import as_if_nothing_happened, interrupted, steps_of, whole

KD = "pytorch_lightning.callbacks"
SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60"),
    *("data.batch_size=16", "data.pad=1", "teacher=none", "objective=ce", "epochs=3"),
    *("trainer.enable_progress_bar=false", "callbacks.pictures=null", "trainer.log_every_n_steps=1"),
)
MIDDLE = {"moment": "step", "epoch": 1, "batch": 4}
EVERY = ("callbacks.last.steps=2",)


def struck(moment: str, epoch: int, batch: int = 0, signum: int = 9, mark: str = "mark") -> tuple[str, ...]:
    """A callback that ends the run at a moment, once."""
    node = f"_target_: saboteur.Saboteur, moment: {moment}, epoch: {epoch}, batch: {batch}, signum: {signum}"
    return (f"+callbacks.saboteur={{{node}, mark: {mark}}}",)


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


SWA = f"+callbacks.swa={{_target_: {KD}.StochasticWeightAveraging, swa_lrs: 0.05, swa_epoch_start: 1}}"
ALIKE: dict[str, tuple[str, ...]] = {
    "loaders-made-anew-each-epoch": ("+trainer.reload_dataloaders_every_n_epochs=1",),
    "loaders-made-anew-every-second-epoch": ("+trainer.reload_dataloaders_every_n_epochs=2",),
    "validated-twice-an-epoch": ("+trainer.val_check_interval=0.5",),
    "limited-batches-in-windows-of-two": ("+trainer.limit_train_batches=6", "trainer.accumulate_grad_batches=2"),
    "the-best-two-kept": ("+callbacks.best.save_top_k=2", "+callbacks.best.save_last=true"),
    "averaged-by-swa": (SWA,),
    "averaged-by-swa-between-epochs": (SWA,),
    "early-stopping": (f"+callbacks.stop={{_target_: {KD}.EarlyStopping, monitor: val/nll, patience: 1}}",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_run_resumed_in_mid_epoch_uses_each_sample_once(tmp_path: Path, name: str) -> None:
    words = (*SMALL, *EVERY, *ALIKE[name])
    strike = {"moment": "between", "epoch": 2} if name.endswith("between-epochs") else MIDDLE
    runs = whole(tmp_path, "full", *words), interrupted(tmp_path, "struck", strike, *words)
    for run in runs:
        if not (best := run / "checkpoints/best.ckpt").exists():
            best.hardlink_to(best.with_name(f"best-step{summary_of(run)['metrics']['best']['step']}.ckpt"))
    as_if_nothing_happened(runs[1], runs[0])


def test_reloaded_loaders_repeat_no_sample_of_a_resumed_epoch(tmp_path: Path) -> None:
    words = (*EVERY, "+trainer.reload_dataloaders_every_n_epochs=1")
    witness = ("+callbacks.witness._target_=saboteur.Witness", "+callbacks.witness.file=run.txt")
    launched(tmp_path, *words, *witness, *struck("step", 1, 4), "hydra.run.dir=run")
    on = launched(tmp_path, "resume=run", "trust=true")
    assert on.returncode == 0, on.stderr
    seen = steps_of(tmp_path / "run")
    samples = [sample for (epoch, _), rest in seen.items() if epoch == "1" for sample in rest[1].split(",")]
    assert len(samples) == len(set(samples)) == 112


def rates_of(run: Path) -> list[float]:
    """The learning rate of every step, from the CSV logger."""
    with (run / "csv/metrics.csv").open() as file:
        return [float(row["optim/lr"]) for row in csv.DictReader(file) if row["optim/lr"]]


def test_extended_run_uses_the_schedule_of_its_new_length(tmp_path: Path) -> None:
    for name, epochs in (("short", 2), ("long", 4)):
        done = launched(
            tmp_path, "logger=csv", f"epochs={epochs}", f"hydra.run.dir={name}", "trainer.log_every_n_steps=1"
        )
        assert done.returncode == 0, done.stderr
    before, long = rates_of(tmp_path / "short"), rates_of(tmp_path / "long")
    on = launched(tmp_path, "resume=short", "epochs=4", *("logger=csv", "trainer.log_every_n_steps=1"))
    assert on.returncode == 0, on.stderr
    assert len(before) == 14
    assert len(long) == 28
    assert rates_of(tmp_path / "short") == [*before, *long[14:]]


def test_csv_logger_has_every_point_once(tmp_path: Path) -> None:
    words = ("logger=csv", *EVERY)
    full = launched(tmp_path, *words, "hydra.run.dir=full")
    assert full.returncode == 0, full.stderr
    launched(tmp_path, *words, *struck("step", 1, 4), "hydra.run.dir=run")
    assert (tmp_path / "run/csv/metrics.csv").stat().st_size
    on = launched(tmp_path, "resume=run", "trust=true")
    assert on.returncode == 0, on.stderr
    rows = []
    for name in ("full", "run"):
        with (tmp_path / name / "csv/metrics.csv").open() as file:
            rows.append([{k: v for k, v in row.items() if "time/" not in k} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


@pytest.mark.parametrize("moment", [("validation", 1), ("test", 2), ("between", 1)], ids=lambda moment: moment[0])
def test_history_of_a_resumed_run_has_every_epoch_once(tmp_path: Path, moment: tuple[str, int]) -> None:
    launched(tmp_path, *struck(*moment), "hydra.run.dir=run")
    assert not (tmp_path / "run/summary.json").exists() or moment[0] == "test"
    with (tmp_path / "run/history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == (["0", "1"] if moment[0] == "test" else ["0"])
    on = launched(tmp_path, "resume=run", "trust=true")
    assert on.returncode == 0, on.stderr
    with (tmp_path / "run/history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a batch size that was searched, stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("searched")
    search = ("callbacks=batch_size", "callbacks.batch_size.start=8", "callbacks.batch_size.most=32")
    done = launched(folder, *search, *struck("step", 1, 1, 15), *EVERY, "hydra.run.dir=run")
    assert done.returncode == 143, done.stderr
    return folder


@pytest.mark.parametrize(
    "typed", [(), ("callbacks.batch_size=null",), ("callbacks=batch_size",)], ids=["none", "null", "again"]
)
def test_resumed_run_uses_the_batch_size_of_the_search(searched: Path, tmp_path: Path, typed: tuple[str, ...]) -> None:
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["batch_size"] == 32
    on = launched_resume(tmp_path, *typed)
    assert on.returncode == 0, on.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["data"]["config"]["batch_size"] == 32
    assert summary["training"]["steps"] == 2 * (126 // 32)
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["config"]["data"]["batch_size"] == 32


def launched_resume(folder: Path, *words: str) -> Any:
    """``kd-train resume=run`` and nothing but ``words``."""
    return kd_train_in(folder, ["resume=run", "trust=true", *words], {"PYTHONPATH": PYTHONPATH})


SHAPING = {
    "ema-removed": (("callbacks=ema",), "callbacks.ema=null", "removed from"),
    "ema-deleted": (("callbacks=ema",), "~callbacks.ema", "removed from"),
    "ema-added": ((), "callbacks=ema", "added to"),
    "another-decay": (("callbacks=ema",), "callbacks.ema.decay=0.5", "changed in"),
    "swa-added": ((), f"+callbacks.swa={{_target_: {KD}.StochasticWeightAveraging, swa_lrs: 0.1}}", "added to"),
    "accumulation-added": (
        *((), f"+callbacks.accumulate={{_target_: {KD}.GradientAccumulationScheduler, scheduling: {{0: 2}}}}"),
        "added to",
    ),
}


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """Folders with a run stopped in its second epoch: without a moving average, and with one."""
    folders = {}
    for begun in ((), ("callbacks=ema",)):
        folders[begun] = tmp_path_factory.mktemp("shaped")
        done = launched(folders[begun], *begun, *struck("step", 1, 1, 15), "hydra.run.dir=run")
        assert done.returncode == 143, done.stderr
    return folders


@pytest.mark.parametrize("name", SHAPING)
def test_callbacks_affecting_weights_cannot_change_in_mid_run(
    name: str, shaped: dict[tuple[str, ...], Path], tmp_path: Path, complain: Complain
) -> None:
    begun, typed, done = SHAPING[name]
    shutil.copytree(shaped[begun], tmp_path, dirs_exist_ok=True)
    words = ("callbacks=ema", typed) if typed.startswith("~") or "decay" in typed else (typed,)
    line = complain("resume=run", "trust=true", *words)
    assert f"cannot be {done} a run that has started, as" in line
    assert "affects the trained weights" in line


def test_observing_callbacks_may_be_added_and_removed(copy: Path) -> None:
    stop = f"+callbacks.stop={{_target_: {KD}.EarlyStopping, monitor: val/acc, patience: 5}}"
    on = launched(copy, "resume=run", "callbacks.throughput=null", stop, "callbacks.best.monitor=val/nll")
    assert on.returncode == 0, on.stderr


def test_missing_best_checkpoint_is_reported_and_the_next_best_used(copy: Path) -> None:
    (copy / "run/checkpoints/best.ckpt").unlink()
    on = launched(copy, "resume=run")
    assert on.returncode == 0, on.stderr
    assert "checkpoints/best.ckpt is missing; the best epoch is chosen among the others" in on.stdout
    summary = summary_of(copy / "run")
    assert summary["metrics"]["best"]["epoch"] == 1
    kept = torch.load(copy / "run/checkpoints/best.ckpt", weights_only=True)
    assert kept["global_step"] == summary["metrics"]["best"]["step"]


def test_best_checkpoint_lost_after_the_last_epoch_is_in_the_summary(copy: Path) -> None:
    shutil.move(copy / "done/summary.json", copy / "old.json")
    (copy / "done/checkpoints/best.ckpt").unlink()
    on = launched(copy, "resume=done")
    assert on.returncode == 0, on.stderr
    metrics = summary_of(copy / "done")["metrics"]
    assert metrics["chosen"] == "of the last epoch; there is no checkpoint of the best"
    assert metrics["best"] == metrics["last"]


def test_early_stopped_run_is_finished_and_not_trained_further(tmp_path: Path) -> None:
    stop = f"+callbacks.stop={{_target_: {KD}.EarlyStopping, monitor: val/acc, patience: 1, min_delta: 1}}"
    done = launched(tmp_path, stop, "epochs=6", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run")["training"]["epochs"] == 2
    assert "is already finished" in launched_resume(tmp_path).stdout
    shutil.move(tmp_path / "run/summary.json", tmp_path / "summary.json")  # as if killed in the test
    on = launched_resume(tmp_path)
    assert on.returncode == 0, on.stderr
    assert summary_of(tmp_path / "run")["training"]["epochs"] == 2


@pytest.mark.parametrize("steps", [5, 10])
def test_run_extended_in_steps_equals_a_longer_run(tmp_path: Path, steps: int) -> None:
    words = ("optim.schedule=constant", "optim.warmup=0", "epochs=3", *EVERY)
    witness = ("+callbacks.witness._target_=saboteur.Witness",)
    full = launched(
        tmp_path, *words, *witness, "+callbacks.witness.file=full.txt", "+trainer.max_steps=17", "hydra.run.dir=full"
    )
    assert full.returncode == 0, full.stderr
    mine = ("+callbacks.witness.file=run.txt", f"+trainer.max_steps={steps}", "hydra.run.dir=run")
    assert launched(tmp_path, *words, *witness, *mine).returncode == 0
    assert "is already finished" in launched_resume(tmp_path).stdout
    on = launched_resume(tmp_path, "+trainer.max_steps=17")
    assert on.returncode == 0, on.stderr
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "full")
    left, wanted = (load_file(tmp_path / name / "student.safetensors") for name in ("run", "full"))
    assert all(torch.equal(left[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("swa", [False, True])
def test_averaged_weights_are_tested_after_resuming_in_the_test(tmp_path: Path, swa: bool) -> None:
    average = (f"+callbacks.swa={{_target_: {KD}.StochasticWeightAveraging, swa_lrs: 0.05, swa_epoch_start: 1}}",)
    words = average if swa else ("callbacks=ema", "callbacks.best=null")
    student = ("student=import", "student.path=test_best:Flat")
    full = launched(tmp_path, *words, *student, "hydra.run.dir=full")
    assert full.returncode == 0, full.stderr
    launched(tmp_path, *words, *student, *struck("test", 2), "hydra.run.dir=run")
    on = launched_resume(tmp_path)
    assert on.returncode == 0, on.stderr
    assert summary_of(tmp_path / "run")["metrics"] == summary_of(tmp_path / "full")["metrics"]
    left, wanted = (load_file(tmp_path / name / "student.safetensors") for name in ("run", "full"))
    assert all(torch.equal(left[key], wanted[key]) for key in wanted)


def test_signal_during_the_test_prints_the_resume_command(tmp_path: Path) -> None:
    done = launched(tmp_path, *struck("test", 2, 0, 15), "hydra.run.dir=run")
    assert done.returncode == 143
    (line,) = done.stderr.splitlines()
    assert line == "error: stopped by SIGTERM in the test; resume with: kd-train resume=run"
    assert summary_of(tmp_path / "run")["metrics"]["test"] is None
    on = launched_resume(tmp_path)
    assert on.returncode == 0, on.stderr
    assert summary_of(tmp_path / "run")["metrics"]["test"]["acc"] >= 0
    assert "untested" not in summary_of(tmp_path / "run")["metrics"]


def test_resume_from_the_previous_checkpoint_repeats_no_epoch(copy: Path) -> None:
    torn(copy / "run")
    assert (copy / "run/checkpoints/previous.ckpt").is_file()
    on = launched(copy, "resume=run")
    assert on.returncode == 0, on.stderr
    assert "is damaged or truncated" in on.stdout
    assert (copy / "run/history.csv").read_text() == (copy / "done/history.csv").read_text()


def test_a_job_of_a_sweep_is_resumed_as_any_run(tmp_path: Path) -> None:
    sweep = ("-m", "T=1,2", "hydra.sweep.dir=sweep", *struck("step", 1, 2, 15))
    assert launched(tmp_path, *sweep).returncode == 143
    on = kd_train_in(tmp_path, ["resume=sweep/0", "trust=true"], {"PYTHONPATH": PYTHONPATH})
    assert on.returncode == 0, on.stderr
    assert summary_of(tmp_path / "sweep/0")["training"]["epochs"] == 2


def test_a_second_resume_after_a_resume(tmp_path: Path) -> None:
    first = struck("step", 0, 4, 9, "one")
    second = "+callbacks.second={_target_: saboteur.Saboteur, moment: step, epoch: 1, batch: 2, mark: two}"
    full = launched(tmp_path, *EVERY, "hydra.run.dir=full")
    assert full.returncode == 0, full.stderr
    assert launched(tmp_path, *EVERY, *first, second, "hydra.run.dir=run").returncode == -9
    assert launched_resume(tmp_path).returncode == -9
    on = launched_resume(tmp_path)
    assert on.returncode == 0, on.stderr
    assert (tmp_path / "run/history.csv").read_text() == (tmp_path / "full/history.csv").read_text()
    left, wanted = (load_file(tmp_path / name / "student.safetensors") for name in ("run", "full"))
    assert all(torch.equal(left[key], wanted[key]) for key in wanted)


def test_contradictory_resume_options_start_no_new_run(complain: Complain, tmp_path: Path) -> None:
    assert "resume= names no run folder" in complain("resume=")
    assert "resume_data=changed applies to a resumed run only" in complain("resume_data=changed")
    (tmp_path / "null").mkdir()
    assert "for the folder of that name, set resume=./null" in complain("resume=null")
