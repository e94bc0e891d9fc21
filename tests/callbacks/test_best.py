"""The tested and saved student is the best by the chosen metric, and the output names it correctly."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Complain
from safetensors.torch import load_file
from small_runs import QUIET, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd.callbacks.modes import mode_of
from kd.cli import compose
from kd.train.pipeline import train

SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60", "epochs=4"),
    *("data.batch_size=16", "teacher=none", "objective=ce", "student=cnn", "callbacks.pictures=null"),
)
CALLBACKS = "pytorch_lightning.callbacks"
SWA = (f"+callbacks.swa._target_={CALLBACKS}.StochasticWeightAveraging", "+callbacks.swa.swa_lrs=0.05")
SEEN: dict[int, dict[str, Tensor]] = {}


class Watch(pl.Callback):
    """Keeps the student's weights of every step; at the end of some epochs they are zero, or scaled."""

    def __init__(self, zero: list[int] = [], scale: list[float] = []) -> None:  # noqa: B006
        self.zero, self.scale = zero, scale

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = batch_idx + 1 == trainer.num_training_batches
        with torch.no_grad():
            for parameter in module.student.parameters():
                if last and trainer.current_epoch in self.zero:
                    parameter.zero_()
            if last and self.scale:
                if not hasattr(self, "plain"):
                    self.plain = module.student.net.fc.weight.clone()
                module.student.net.fc.weight.copy_(self.plain * self.scale[trainer.current_epoch])
                module.student.net.fc.bias.zero_()
        SEEN[trainer.global_step] = {key: value.clone() for key, value in module.student.net.state_dict().items()}


def watched(folder: Path, *words: str, zero: str = "[3]", scale: str = "[]") -> tuple[Path, dict[str, Any]]:
    """A run whose last epoch is its worst, and its summary."""
    SEEN.clear()
    watch = f"+callbacks.watch={{_target_: test_best.Watch, zero: {zero}, scale: {scale}}}"
    run = trained(folder, *SMALL, watch, *words)
    return run, json.loads((run / "summary.json").read_text())


def rows_of(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def keeps(run: Path, step: float) -> bool:
    """Whether the student that the run leaves has the weights after ``step`` steps."""
    left = load_file(run / "student.safetensors")
    return all(torch.equal(left[key], value) for key, value in SEEN[int(step)].items())


def best_of(run: Path, key: str = "val/acc", sign: int = 1) -> dict[str, float]:
    return max(rows_of(run), key=lambda row: (sign * row[key], -row["val/nll"], row["step"]))


WAYS = {
    "another-file-name": ("callbacks.best.filename=mine",),
    "a-file-name-with-its-epoch": ("callbacks.best.filename='{epoch}'",),
    "the-best-three": ("+callbacks.best.save_top_k=3",),
    "all": ("+callbacks.best.save_top_k=-1",),
    "all-by-epoch-validated-twice-an-epoch": (
        *("+callbacks.best.save_top_k=-1", "callbacks.best.filename='{epoch}'", "+trainer.val_check_interval=0.5"),
    ),
    "every-few-steps": ("+callbacks.best.every_n_train_steps=3",),
    "lightning's-own": (f"callbacks.best._target_={CALLBACKS}.ModelCheckpoint",),
    "two-callbacks": (
        f"+callbacks.other={{_target_: {CALLBACKS}.ModelCheckpoint, monitor: val/nll, filename: other}}",
    ),
    "the-last-kept-too": ("+callbacks.best.save_last=true",),
}


@pytest.mark.parametrize("way", WAYS)
def test_best_epoch_is_tested_and_saved_for_any_callback_options(tmp_path: Path, way: str) -> None:
    run, summary = watched(tmp_path, *WAYS[way])
    best = best_of(run)
    assert best["epoch"] < 3
    assert keeps(run, best["step"])
    assert summary["metrics"]["best"] == pytest.approx(best)
    assert summary["metrics"]["monitor"] == "val/acc"
    assert summary["metrics"]["chosen"].startswith("at the best validation epoch")
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 28


def test_lowest_nll_is_best_by_default_mode(tmp_path: Path) -> None:
    run, summary = watched(tmp_path, "callbacks.best.monitor=val/nll", zero="[2, 3]")
    best = best_of(run, "val/nll", -1)
    assert best["epoch"] < 2
    assert keeps(run, best["step"])
    assert summary["metrics"]["chosen"] == "at the best validation epoch by val/nll"


def test_best_by_a_training_metric_is_not_labelled_validation(tmp_path: Path) -> None:
    _, summary = watched(tmp_path, "callbacks.best.monitor=train/loss", "trainer.log_every_n_steps=1", zero="[]")
    assert summary["metrics"]["chosen"].startswith("at the best epoch by train/loss")


@pytest.mark.parametrize(
    "words",
    [("callbacks.best.monitor=val/nll", "callbacks.best.mode=max"), ("callbacks.best.mode=min",)],
    ids=["nll-with-max", "accuracy-with-min"],
)
def test_a_mode_that_contradicts_its_metric_is_refused(complain: Complain, words: tuple[str, ...]) -> None:
    assert "is better; leave it out, or set callbacks.best.mode=" in complain(*SMALL, *words)


def test_early_stopping_takes_its_mode_from_the_metric(tmp_path: Path) -> None:
    stop = f"+callbacks.stop={{_target_: {CALLBACKS}.EarlyStopping, monitor: val/acc, patience: 1}}"
    _, summary = watched(tmp_path, stop, "epochs=6", zero="[0, 4, 5]")
    assert summary["training"]["epochs"] > 2  # Lightning's mode, min, would have ended it where accuracy rose


def test_unknown_metric_needs_a_mode(complain: Complain) -> None:
    own = "+callbacks.own._target_=test_best.Watch"
    line = complain(*SMALL, own, "callbacks.best.monitor=val/mine")
    assert "callbacks.best.mode must be given: max if a higher" in line


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        *(("val/acc", "max"), ("val/top5", "max"), ("val/nll", "min"), ("val/ece", "min"), ("val/agreement", "max")),
        *(
            ("val/kl", "min"),
            ("teacher/acc", "max"),
            ("teacher/nll", "min"),
            ("train/loss", "min"),
            ("train/kd", "min"),
        ),
        *(("train/acc", "max"), ("val/peer_a/acc", "max"), ("val/knn", "max"), ("time/images_per_s", "max")),
        *(("teacher/entropy", None), ("val/mine", None), ("mine", None), ("train/kd/T", None)),
    ],
)
def test_best_checkpoint_path_of_each_metric(monitor: str, mode: str | None) -> None:
    assert mode_of(monitor) == mode


def test_ties_in_accuracy_are_broken_by_nll_then_by_later_epoch(tmp_path: Path) -> None:
    run, summary = watched(tmp_path / "scaled", "optim.lr=1e-12", zero="[]", scale="[0.01, 3.0, 0.001, 0.02]")
    rows = rows_of(run)
    assert len({row["val/acc"] for row in rows}) == 1
    lowest = min(rows, key=lambda row: row["val/nll"])
    assert summary["metrics"]["best"]["epoch"] == lowest["epoch"] != 3
    assert keeps(run, lowest["step"])
    run, summary = watched(tmp_path / "equal", zero="[0, 1, 2, 3]")
    assert summary["metrics"]["best"]["epoch"] == 3


UNTRUE = {
    "of the last epoch; nothing was validated": ("+trainer.max_steps=3",),
    "of the last epoch; no callback keeps the best": ("callbacks.best=null",),
    "of the last epoch; there is no checkpoint of the best": ("+callbacks.best.save_top_k=0",),
    "at the best validation epoch; the last 7 steps were not validated": ("trainer.check_val_every_n_epoch=3",),
}


@pytest.mark.parametrize("words", UNTRUE)
def test_table_and_summary_name_the_tested_checkpoint(
    tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, summary = watched(tmp_path, *UNTRUE[words])
    assert summary["metrics"]["chosen"] == words
    assert f"test scores {words}" in capsys.readouterr().out
    steps = summary["training"]["steps"]
    assert keeps(run, 21 if "check" in UNTRUE[words][0] else steps)
    assert summary["metrics"]["best"] == ({} if "nothing" in words else pytest.approx(rows_of(run)[-1]))


class Module(pl.LightningDataModule):
    """Data without a validation loader; of the test part there is one, or not."""

    classes, shape = 4, (1, 8, 8)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.rand(32, 1, 8, 8), torch.arange(32) % 4), batch_size=8)


class Measured(Module):
    test_dataloader = Module.train_dataloader


@pytest.mark.parametrize("module", [Module, Measured])
def test_missing_validation_or_test_loader_is_reported(
    tmp_path: Path, module: type[Module], capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(*QUIET, *SMALL)
    summary = train({**config, "data": {"_target_": f"test_best.{module.__name__}"}}, tmp_path / "run")
    assert summary["metrics"]["chosen"] == "of the last epoch; nothing was validated"
    assert summary["metrics"]["best"] == summary["metrics"]["last"] == {}
    said = capsys.readouterr().out
    assert "scores of the last epoch; nothing was validated" in said
    assert bool(summary["metrics"]["test"]) is (module is Measured)
    assert ("not tested: the data has no test part" in said) is (module is Module)


class Flat(nn.Module):
    """A student without batch norms."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(64, 16), nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images.flatten(1)).relu())


def averaged(first: int, last: int) -> dict[str, Tensor]:
    """The mean of the weights at the ends of epochs, of 7 steps each, as SWA takes it."""
    ends = [SEEN[7 * (epoch + 1)] for epoch in range(first, last + 1)]
    return {key: sum(end[key] for end in ends) / len(ends) for key in ends[0]}  # type: ignore[misc]


def test_swa_weights_are_validated_tested_and_saved(tmp_path: Path) -> None:
    student = ("student=import", "student.path=test_best:Flat")
    run, summary = watched(tmp_path, *SWA, *student, "+callbacks.swa.swa_epoch_start=2", zero="[]")
    left = load_file(run / "student.safetensors")
    for key, value in averaged(0, 2).items():  # taken at the start of the epochs 1, 2 and 3
        torch.testing.assert_close(left[key], value)
    assert summary["metrics"]["chosen"] == "of the averaged weights (StochasticWeightAveraging)"
    assert summary["metrics"]["best"] == pytest.approx(rows_of(run)[-1])
    assert len(rows_of(run)) == 5  # four epochs and the average


def test_swa_weights_with_batch_norms_are_saved(tmp_path: Path) -> None:
    run, summary = watched(tmp_path, *SWA, "student=resnet8", zero="[]")
    assert summary["metrics"]["chosen"] == "of the averaged weights (StochasticWeightAveraging)"
    assert summary["training"]["epochs"] == 4
    assert keeps(run, summary["training"]["steps"])
    assert summary["metrics"]["best"] == pytest.approx(rows_of(run)[-1])


@pytest.mark.parametrize("best", [(), ("callbacks.best=null",)], ids=["with-best", "without-best"])
def test_lightning_weight_averaging_is_tested_with_its_average(tmp_path: Path, best: tuple[str, ...]) -> None:
    average = f"+callbacks.average._target_={CALLBACKS}.EMAWeightAveraging"
    run, summary = watched(tmp_path, average, *best, zero="[]")
    assert not keeps(run, summary["metrics"]["best"]["step"])
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    left = load_file(run / "student.safetensors")
    if best:
        assert all(torch.equal(left[key], last[f"student.net.{key}"]) for key in left)
