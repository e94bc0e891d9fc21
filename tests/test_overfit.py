"""Overfitting: the same samples in each epoch, so that even random labels are learned."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import Callback
from test_data import make_folder
from trained import trained

SEEN: list[Any] = []
QUIET = ("teacher=none", "objective=ce", "callbacks.pictures=null")


class Watch(Callback):
    """Notes each training batch's pixels."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        SEEN.append(batch[0].float().flatten(1).sum(1).tolist())


WATCH = f"+callbacks.watch._target_={__name__}.Watch"


def seen(folder: Path, *words: str) -> list[Any]:
    SEEN.clear()
    trained(folder, *QUIET, WATCH, "student=mlp", "student.width=8", *words)
    return list(SEEN)


@pytest.mark.parametrize(
    "words",
    [("debug=overfit", "trainer.max_epochs=3"), ("+trainer.overfit_batches=3", "epochs=3")],
    ids=["debug=overfit", "trainer.overfit_batches"],
)
def test_overfitting_repeats_the_same_unaugmented_samples(words: tuple[str, ...], tmp_path: Path) -> None:
    data = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=300", "data.test=60")
    augmented = ("data.pad=2", "data.flip=true", "data.mixup=1.0", "data.batch_size=16")
    batches = seen(tmp_path, *data, *augmented, *words)
    assert len(batches) == 9
    assert batches[:3] == batches[3:6] == batches[6:]
    assert len({tuple(batch) for batch in batches}) == 3


def test_overfitting_repeats_the_same_picture_files(tmp_path: Path) -> None:
    make_folder(tmp_path / "pets", per_class=12)
    data = ("data=folder", f"data.root={tmp_path / 'pets'}", "data.size=16", "data.batch_size=4", "data.workers=0")
    batches = seen(tmp_path, *data, "data.val=test", "+trainer.overfit_batches=2", "epochs=3")
    assert len(batches) == 6
    assert batches[:2] == batches[2:4] == batches[4:]


def test_overfitting_repeats_the_same_samples_of_a_custom_module(tmp_path: Path) -> None:
    data = ("~data", "+data={_target_: test_own_data_modules.Own}", "+trainer.overfit_batches=2", "epochs=3")
    batches = seen(tmp_path, *data)
    assert batches[:2] == batches[2:4] == batches[4:]


def test_overfitting_learns_random_labels(tmp_path: Path) -> None:
    data = ("data=synthetic", "data.noise=1.0", "data.shape=[3,16,16]", "data.train=300", "data.test=60")
    words = ("debug=overfit", "data.batch_size=16", "data.pad=2", "student=resnet8", "logger=csv")
    run = trained(tmp_path, *QUIET, *data, *words, "trainer.log_every_n_steps=3", "trainer.max_epochs=60")
    rows = list(csv.DictReader(next(run.rglob("metrics.csv")).open()))
    last = [row for row in rows if row.get("train/loss")][-1]
    assert float(last["train/loss"]) < 0.05
    assert float(last["train/acc"]) == 1
