"""Schedules as pure functions of the share of the run that is done."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from kd import Optim
from kd.errors import InputError

make = partial(torch.optim.SGD, lr=1.0)


def test_cosine_falls_to_zero_after_a_linear_rise() -> None:
    optim = Optim(make, "cosine", warmup=0.1)
    factors = [optim.factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_milestones_are_those_of_the_published_recipe() -> None:
    optim = Optim(make, "multistep", warmup=0.0)
    factors = [optim.factor(epoch, 240) for epoch in range(240)]
    steps = [epoch for epoch in range(1, 240) if factors[epoch] != factors[epoch - 1]]
    assert steps == [150, 180, 210]
    assert factors[-1] == pytest.approx(1e-3)


def test_frozen_parameters_are_excluded() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    answer = Optim(make).configure(module, total=10)
    assert [p is module.weight for p in answer["optimizer"].param_groups[0]["params"]] == [True]


@pytest.mark.parametrize("wrong", [{"schedule": "cosin"}, {"warmup": 1.5}, {"milestones": (150, 180)}], ids=" ".join)
def test_invalid_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Optim(make, **wrong)  # type: ignore[arg-type]
