"""The partial last batch of an epoch: used as it is, on any number of processes, and after a resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_resume import FOLDER, MEMORY, WITNESS, as_if_nothing_happened, interrupted, pictures, run, whole

from kd import Arrays, Memory
from kd.callbacks.position import restore_position
from kd.cli import compose
from kd.data.folder import Folder
from kd.data.loader import Loader, batches_of
from kd.errors import InputError

counts = st.integers(1, 200), st.integers(1, 16), st.sampled_from([1, 2, 3])


def loader(count: int, size: int, rank: int = 0, world: int = 1, start: int = 0, **options: Any) -> Loader:
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    return Loader(images, torch.zeros(count), size, True, 0, int, rank, world, start, drop_last=False, **options)


@given(*counts)
def test_partial_epoch_covers_samples_once_with_equal_steps_per_process(count: int, size: int, world: int) -> None:
    ranks = [list(loader(count, size, rank, world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {batches_of(count, size, world, False)}
    sizes = [[len(batch.labels) for batch in batches] for batches in ranks]
    assert all(each == sizes[0] for each in sizes), "or the gradient's mean over processes is not that over samples"
    seen = torch.cat([batch.index for batches in ranks for batch in batches] or [torch.zeros(0, dtype=torch.long)])
    assert len(seen.unique()) == len(seen) == count - count % world


def test_the_benchmark_s_epoch_has_782_steps() -> None:
    assert len(loader(50_000, 64)) == 782
    assert [len(batch.labels) for batch in loader(100, 64)] == [64, 36]
    for name in ("cifar100/resnet32x4_resnet8x4", "imagenet/r34_r18"):
        assert compose(f"experiment={name}", "data=synthetic")["data"]["drop_last"] is False
    assert len(Loader(torch.zeros(100, 1, 1, 1), torch.zeros(100), 64, True)) == 1, "by default it is left out"


@given(*counts, st.sampled_from([1, 2, 3]), st.data())
def test_completed_and_remaining_batches_make_an_epoch(
    count: int, size: int, before: int, now: int, draw: st.DataObject
) -> None:
    done = draw.draw(st.integers(0, count // (size * before))) * size * before
    rest = [batch.index.tolist() for batch in loader(count, size, start=done, world=now)]
    if before == now:
        assert [batch.index.tolist() for batch in loader(count, size, world=now)][done // (size * now) :] == rest
    if not done or before == now:
        return
    data = SimpleNamespace(batch_size=size, train_labels=torch.zeros(count), start=0, drop_last=False)
    current: dict[str, int] = {}
    checkpoint = {
        "kd": {"place": {"samples": done, "world": before, "steps": 100, "epochs": 2}},
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": current}}},
        "lr_schedulers": [],
    }
    trainer: Any = SimpleNamespace(datamodule=data, world_size=now, max_epochs=2, estimated_stepping_batches=50)
    restore_position(trainer, checkpoint)
    assert current["ready"] + len(rest) == len(loader(count, size, world=now))


def test_repeated_augmentation_includes_the_last_batch() -> None:
    batches = list(loader(10, 4, repeats=3))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]


def test_a_last_batch_of_one_image_is_refused_before_anything_runs(tmp_path: Path) -> None:
    images, labels = torch.zeros(9, 1, 4, 4, dtype=torch.uint8), torch.arange(9) % 3
    arrays = Arrays((images, labels), (images, labels), ("a", "b", "c"))
    with pytest.raises(InputError, match="batch_size=4 of 9 training images leaves a last batch of one"):
        Memory(arrays, batch_size=4, val="test", drop_last=False)
    Memory(arrays, batch_size=4, val="test")
    Memory(arrays, batch_size=1, val="test", drop_last=False)


def test_picture_files_include_the_last_batch(tmp_path: Path) -> None:
    pictures(tmp_path)  # 72 training images
    for drop, sizes in ((True, [20] * 3), (False, [20, 20, 20, 12])):
        data = Folder(str(tmp_path / "pictures"), size=16, batch_size=20, val="test", workers=0, drop_last=drop)
        batches = list(data.train_dataloader())
        assert [len(batch.labels) for batch in batches] == sizes
        assert len(data.train_dataloader()) == len(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_resume_into_the_partial_batch(tmp_path: Path, kind: str) -> None:
    pictures(tmp_path)
    words = (*FOLDER, "data.batch_size=10") if kind == "folder" else (*MEMORY, "data.batch_size=25")
    words += ("data.drop_last=false", "callbacks.last.steps=1")
    full = whole(tmp_path, "full", *words)
    for name, strike in {"mid": {"epoch": 1, "batch": 2}, "last": {"epoch": 1, "batch": 5}}.items():
        as_if_nothing_happened(interrupted(tmp_path, name, {"moment": "step", **strike}, *words), full)


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 1])
def test_two_processes_resume_into_the_partial_batch(tmp_path: Path, after: int) -> None:
    words = (*MEMORY, "trainer.devices=2", "trainer.strategy=ddp", "trainer.log_every_n_steps=1", "data.batch_size=12")
    words += ("data.drop_last=false", "callbacks.last.steps=2")
    full = whole(tmp_path, "full", *words)  # trains the teacher too
    strike = {"moment": "step", "epoch": 1, "batch": 3, "signum": 15, "mark": "mark"}
    sabotage = [f"+callbacks.saboteur.{key}={value}" for key, value in strike.items()]
    sabotage += ["+callbacks.saboteur._target_=saboteur.Saboteur", *WITNESS, "+callbacks.witness.file=struck.txt"]
    struck = run(tmp_path, *words, *sabotage, "hydra.run.dir=struck", fresh=True)
    assert struck.returncode == 143, struck.stderr
    on = run(tmp_path, "resume=struck", "trust=true", f"trainer.devices={after}", fresh=True)
    assert on.returncode == 0, on.stderr
    if after == 2:
        as_if_nothing_happened(tmp_path / "struck", full)
    given = [line.split() for name in ("struck.txt", "struck.1.txt") for line in (tmp_path / name).open()]
    samples = [sample for epoch, _, _, index, _ in given if epoch == "1" for sample in index.split(",")]
    assert len(samples) == len(set(samples)) == 127 // after * after, "every image of the epoch once, equally many each"
