"""Cross-entropy of partly labelled batches on several processes: the mean over the labelled samples of all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.losses import BYOT, CE, cross_entropy


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """As if another process had the counts that are put into this list."""
    others: list[Tensor] = []
    dist = sys.modules[cross_entropy.__module__].dist
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(others[0]))
    return others


@pytest.mark.parametrize("known", [(1, 7), (8, 3), (0, 5)], ids=["1-and-7", "8-and-3", "0-and-5"])
def test_processes_with_unequal_labels_train_by_the_mean_over_all_labelled_samples(
    known: tuple[int, int], two_processes: list[Tensor]
) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 8, 5), torch.randint(0, 5, (2, 8))
    for mine, count in zip(labels, known):
        mine[count:] = -1
    values = []
    for rank in (0, 1):
        two_processes[:] = [torch.tensor(known[1 - rank])]
        values.append(cross_entropy(logits[rank], labels[rank], shared=True))
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(torch.stack(values).mean(), expected)


def test_without_any_label_the_mean_over_processes_is_0(two_processes: list[Tensor]) -> None:
    two_processes[:] = [torch.tensor(0)]
    assert cross_entropy(torch.randn(4, 3), torch.full((4,), -1), shared=True) == 0


@pytest.mark.parametrize("loss", [CE(), BYOT()], ids=["ce", "byot"])
def test_processes_ask_each_other_only_where_labels_may_be_unknown(loss: Any) -> None:
    assert loss.shared  # nothing is known of the data
    loss.attach_data(3, torch.tensor([0, 1, 2]))
    assert not loss.shared
    loss.attach_data(3, torch.tensor([0, -1, 2]))
    assert loss.shared


def test_one_process_counts_its_own_samples() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, -1, 2, -1])
    expected = nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    for shared in (False, True):
        torch.testing.assert_close(cross_entropy(logits, labels, shared=shared), expected)


@pytest.mark.slow
def test_partly_labelled_data_train_on_two_processes_as_on_one(kd_train: Run, tmp_path: Path) -> None:
    words = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=200", "data.per_class=10")
    words += ("data.unlabelled=true", "teacher=none", "objective=ce", "student=mlp", "student.width=8", "epochs=2")
    words += ("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "logger=none")
    for processes in (1, 2):
        size = 16 // processes
        more = (f"trainer.devices={processes}", f"data.batch_size={size}", f"hydra.run.dir={processes}")
        done = kd_train(*words, *more, fresh=True)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / f"{processes}/student.safetensors") for processes in (1, 2))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_processes_with_unequal_class_weights_train_by_the_weighted_mean_over_all(
    loss: str, two_processes: list[Tensor]
) -> None:
    from kd.losses import focal_loss

    function = {"ce": lambda *args, **kw: cross_entropy(*args, 0.0, **kw), "focal": focal_loss}[loss]
    torch.manual_seed(0)
    weight = torch.tensor([1.0, 2.0, 5.0])
    logits, labels = torch.randn(2, 8, 3), torch.randint(0, 3, (2, 8))
    values = []
    for rank in (0, 1):
        two_processes[:] = [weight[labels[1 - rank]].sum()]
        values.append(function(logits[rank], labels[rank], weight=weight, shared=True))
    expected = function(logits.flatten(0, 1), labels.flatten(), weight=weight)
    torch.testing.assert_close(torch.stack(values).mean(), expected)
