"""The place in an epoch, the gate and the guard after a resume under other circumstances."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd.callbacks.nan_guard import NaNGuard
from kd.callbacks.position import restore_position
from kd.callbacks.teacher_gate import TeacherGate
from kd.data.loader import Loader
from kd.errors import TrainingFailed


def trainer(**known: Any) -> Any:
    return SimpleNamespace(**known)


@given(st.integers(1, 300), st.integers(1, 16), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]), st.data())
def test_completed_and_remaining_batches_make_an_epoch(
    count: int, size: int, before: int, now: int, draw: st.DataObject
) -> None:
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    whole = Loader(images, torch.zeros(count), size, train=True, world=now)
    done = draw.draw(st.integers(0, count // (size * before))) * size * before
    if not done:
        return
    data = SimpleNamespace(batch_size=size, train_labels=torch.zeros(count), start=0)
    current: dict[str, int] = {}
    checkpoint = {
        "kd": {"place": {"samples": done, "world": before, "steps": 100, "epochs": 2}},
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": current}}},
        "lr_schedulers": [],
    }
    restore_position(trainer(datamodule=data, world_size=now, max_epochs=2, estimated_stepping_batches=50), checkpoint)
    rest = len(list(Loader(images, torch.zeros(count), size, train=True, world=now, start=done)))
    assert data.start == done
    if before != now:
        assert current["ready"] + rest == len(whole)


def test_the_schedule_follows_the_epochs_that_are_done() -> None:
    scheduler = {"last_epoch": 500}  # of 1,000 steps in 100 epochs on one device, gone on with for 200 on two
    place = {"samples": 0, "world": 1, "steps": 1000, "epochs": 100}
    checkpoint = {"kd": {"place": place}, "lr_schedulers": [scheduler]}
    data = SimpleNamespace(batch_size=8)
    restore_position(
        trainer(datamodule=data, world_size=2, max_epochs=200, estimated_stepping_batches=1000), checkpoint
    )
    assert scheduler["last_epoch"] == 250  # 50 epochs of 5 steps


class Scaler:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def broken(scale: float | None, part: float = 1.0, **options: Any) -> NaNGuard:
    module: Any = nn.Linear(2, 2)
    module.parts = {"ce": torch.tensor(part)}
    module.weight.grad = torch.full((2, 2), float("inf"))
    guard = NaNGuard(**options)
    plugin = SimpleNamespace() if scale is None else SimpleNamespace(scaler=Scaler(scale))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    guard.on_before_optimizer_step(trainer(precision_plugin=plugin, global_step=4), module, optimizer)
    return guard


def test_float16_scale_search_is_not_a_failure() -> None:
    assert broken(65536.0).skipped == 0
    assert broken(65536.0, nan="skip").skipped == 0
    for scale, part in ((None, 1.0), (1.0, 1.0), (65536.0, float("nan"))):
        with pytest.raises(TrainingFailed, match="at step 5"):
            broken(scale, part)


def test_no_skipped_update_where_statistics_are_nonfinite() -> None:
    module: Any = nn.BatchNorm1d(2)
    module.weight.grad = torch.full((2,), float("nan"))
    known = trainer(precision_plugin=SimpleNamespace(), global_step=0)
    guard, optimizer = NaNGuard("skip"), torch.optim.SGD(module.parameters(), 0.1)
    guard.on_before_optimizer_step(known, module, optimizer)
    assert guard.skipped == 1
    module.weight.grad = torch.full((2,), float("nan"))
    module.running_mean[0] = float("nan")
    with pytest.raises(TrainingFailed, match="and so is running_mean"):
        guard.on_before_optimizer_step(known, module, optimizer)


def test_resumed_run_has_the_accuracy_of_its_teacher() -> None:
    before, after = TeacherGate(), TeacherGate()
    before.accuracy = {"": 0.75}
    after.load_state_dict(before.state_dict())
    assert after.accuracy == {"": 0.75}
