"""The frozen teacher: outside the module tree, and its fingerprint."""

from __future__ import annotations

import copy

import torch
from torch import nn

import kd
from kd import Batch, Frozen


def make() -> tuple[nn.Module, Frozen, Batch]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    return network, Frozen(network), Batch(torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.long))


def test_teacher_is_in_no_module_tree() -> None:
    network, teacher, _ = make()
    holder = nn.Module()
    holder.teacher = teacher
    assert list(holder.parameters()) == []
    assert list(holder.buffers()) == []
    assert holder.state_dict() == {}
    assert not any(p.requires_grad for p in network.parameters())


def test_train_mode_does_not_affect_the_teacher() -> None:
    network, teacher, batch = make()
    before = teacher.fingerprint()
    teacher.train()
    assert not any(module.training for module in network.modules())
    first, second = teacher(batch)[""], teacher(batch)[""]
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert teacher.fingerprint() == before


def test_teacher_moves_with_the_student() -> None:
    network, teacher, _ = make()
    holder = nn.Module()
    holder.teacher = teacher
    holder.double()
    assert all(p.dtype == torch.float64 for p in network.parameters())


def test_copies_share_the_teacher() -> None:
    _, teacher, _ = make()
    assert copy.deepcopy(teacher) is teacher


def test_layers_of_the_teacher_can_be_tapped() -> None:
    teacher = Frozen(kd.models["cnn"](classes=4))
    teacher.tap(["layer1", "fc:in"])
    answer = teacher(Batch(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)))
    assert answer["layer1"].shape == (2, 16, 8, 8)
    assert answer["fc:in"].shape == (2, 32)


def test_fingerprint_changes_with_one_number() -> None:
    network, teacher, _ = make()
    before = teacher.fingerprint()
    with torch.no_grad():
        network[1].weight[0, 0] += 1e-6
    assert teacher.fingerprint() != before
