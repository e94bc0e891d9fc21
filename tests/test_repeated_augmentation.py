"""Repeated augmentation: epochs of equal length, in which each sample comes several times, augmented differently."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from kd import Arrays, Batch, InputError, Memory
from kd.data.loader import Loader, shard

IMAGES = torch.randint(0, 256, (40, 1, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
ARRAYS = Arrays((IMAGES, torch.arange(40) % 4), (IMAGES[:4], torch.arange(4)), ("a", "b", "c", "d"))


def batches(repeats: int, **options: int) -> list[Batch]:
    return list(Loader(IMAGES, torch.arange(40), 4, train=True, seed=3, repeats=repeats, **options))


@given(repeats=st.integers(1, 5), epoch=st.integers(0, 5), world=st.integers(1, 4), start=st.integers(0, 20))
def test_repeats_are_consecutive_and_shared_by_processes(repeats: int, epoch: int, world: int, start: int) -> None:
    plain = shard(40, True, 3, epoch, 0, 1, 0)
    whole = shard(40, True, 3, epoch, 0, 1, 0, repeats)
    assert len(whole) == 40
    assert whole.tolist() == [int(plain[position // repeats]) for position in range(40)]
    parts = [shard(40, True, 3, epoch, rank, world, start, repeats).tolist() for rank in range(world)]
    together = [index for turn in range(-(-40 // world)) for part in parts for index in part[turn : turn + 1]]
    assert together == whole[start:].tolist()


def test_batch_contains_the_repeat_number_also_after_resuming() -> None:
    times = torch.cat([batch.view for batch in batches(3)])  # type: ignore[misc]
    assert times.tolist() == [position % 3 for position in range(40)]
    on = batches(3, start=8)
    for one, other in zip(batches(3)[2:], on, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.view, other.view)  # type: ignore[arg-type]
    assert batches(1)[0].view is None


@pytest.mark.parametrize(
    "more",
    [{"pad": 3, "flip": True}, {"transform": "randaugment"}, {"mixup": 1.0}, {"views": 50, "pad": 3}],
    ids=["crop-and-flip", "randaugment", "mixup", "views"],
)
def test_augmentations_differ_by_repeat_and_epoch(more: dict[str, object]) -> None:
    memory = Memory(ARRAYS, batch_size=10, val="test", repeats=2, **more)  # type: ignore[arg-type]
    seen: dict[int, list[torch.Tensor]] = {}
    for epoch in range(2):
        for batch in memory.loader("train", seed=1, epoch=lambda e=epoch: e):  # type: ignore[misc]
            done = memory.augment(batch, 1, epoch)
            for index, image in zip(done.index.tolist(), done.images):
                seen.setdefault(index, []).append(image)
            assert (done.view is None) == (memory.views == 0)
    different = [not torch.equal(a, b) for images in seen.values() for a, b in pairwise(images)]
    assert sum(different) > 0.8 * len(different)


def test_an_epoch_has_as_many_steps_and_evaluation_sees_everything_once() -> None:
    memory = Memory(ARRAYS, batch_size=10, val="test", repeats=3)
    assert len(memory.loader("train")) == len(Memory(ARRAYS, batch_size=10, val="test").loader("train"))
    assert sum(len(batch.labels) for batch in memory.loader("val")) == 4
    with pytest.raises(InputError, match="repeats must be at least 1, got 0"):
        Memory(ARRAYS, batch_size=10, val="test", repeats=0)
