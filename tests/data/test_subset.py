"""Loaders that can start anywhere, labelled subsets, and unlabelled and mixed labels in the losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Complain
from torch import Tensor, nn

from kd import Arrays, Batch, Data, Memory, Objective, Term
from kd.errors import InputError
from kd.losses import CE, DKD, KL, CRDBatch


def arrays(count: int = 240, classes: int = 4) -> Arrays:
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).to(torch.uint8).contiguous()
    labels = torch.arange(count) % classes
    return Arrays((images, labels), (images[:20], labels[:20]), tuple("abcdefgh"[:classes]))


def order(memory: Memory, **given: Any) -> list[int]:
    return torch.cat([batch.index for batch in memory.loader("train", seed=3, epoch=lambda: 2, **given)]).tolist()


def test_epoch_can_continue_at_any_batch() -> None:
    memory = Memory(arrays(), batch_size=16, val="test", pad=1, flip=True)
    whole = list(memory.loader("train", seed=3, epoch=lambda: 2))
    for k in (0, 1, 7, 15):
        loader = memory.loader("train", seed=3, epoch=lambda: 2, start=16 * k)
        rest = list(loader)
        assert len(rest) == 15 - k
        for here, there in zip(rest, whole[k:]):
            assert all(torch.equal(a, b) for a, b in zip(memory.augment(here, 3, 2), memory.augment(there, 3, 2)))
        assert len(loader) == 15
        assert len(list(loader)) == 15  # the next epoch is whole


def test_ranks_together_equal_one_process() -> None:
    alone = order(Memory(arrays(), batch_size=16, val="test"))
    both = Memory(arrays(), batch_size=8, val="test")
    ranks = [order(both, rank=r, world=2) for r in (0, 1)]
    for step in range(15):
        together = {i for rank in ranks for i in rank[8 * step : 8 * step + 8]}
        assert together == set(alone[16 * step : 16 * step + 16])


def test_resume_with_another_number_of_processes() -> None:
    memory = Memory(arrays(), batch_size=8, val="test")
    first = {i for rank in (0, 1, 2) for i in order(memory, rank=rank, world=3)[: 8 * 4]}
    rest = order(memory, start=8 * 4 * 3)
    assert len(first) + len(rest) == 240
    assert not first & set(rest)


def test_data_module_starts_once_at_the_given_batch() -> None:
    data = Data(Memory(arrays(), batch_size=16, val="test"))
    data.start = 32
    loader = data.train_dataloader()
    assert len(loader) == 15
    assert len(list(loader)) == 13
    assert len(list(data.train_dataloader())) == 15


def test_resident_images_make_the_same_batches() -> None:
    plain, resident = (Memory(arrays(), batch_size=16, val="test", resident=r) for r in (False, True))
    pairs = zip(plain.loader("train", 1), resident.loader("train", 1, device=torch.device("cpu")))
    assert all(torch.equal(a.images, b.images) and torch.equal(a.index, b.index) for a, b in pairs)


@pytest.mark.gpu
def test_resident_images_are_on_the_gpu() -> None:
    memory = Memory(arrays(), batch_size=16, val="test", resident=True)
    pairs = list(zip(memory.loader("train", 1), memory.loader("train", 1, device=torch.device("cuda"))))
    assert all(b.images.is_cuda and torch.equal(a.images, b.images.cpu()) for a, b in pairs)


@pytest.mark.parametrize("asked", [{"fraction": 0.25}, {"per_class": 13}], ids=["fraction", "per-class"])
def test_subset_is_drawn_by_class_from_training_images_only(asked: dict[str, Any]) -> None:
    whole, part = Memory(arrays(), batch_size=8, val=0.2), Memory(arrays(), batch_size=8, val=0.2, **asked)
    each = round(48 * asked["fraction"]) if "fraction" in asked else asked["per_class"]
    assert part.parts["train"][1].bincount().tolist() == [each] * 4
    for name in ("val", "test"):
        assert torch.equal(part.parts[name][0], whole.parts[name][0])
    assert (part.mean, part.std) == (whole.mean, whole.std)
    other = Memory(arrays(), batch_size=8, val=0.2, split_seed=1, **asked)
    assert not torch.equal(other.parts["train"][0], part.parts["train"][0])


def test_a_larger_subset_contains_a_smaller_one() -> None:
    found = [Memory(arrays(), batch_size=8, val=0.2, per_class=k).parts["train"][0][:, 0, 0, 0] for k in (5, 9, 30)]
    values = [set(images.tolist()) for images in found]
    assert values[0] < values[1] < values[2]


def test_remaining_images_may_be_used_without_labels() -> None:
    part = Memory(arrays(), batch_size=8, val=0.2, per_class=5)
    both = Memory(arrays(), batch_size=8, val=0.2, per_class=5, unlabelled=True)
    images, labels = both.parts["train"]
    assert len(labels) == 192
    assert torch.equal(images[labels >= 0], part.parts["train"][0])
    assert torch.equal(labels[labels >= 0], part.parts["train"][1])
    assert both.counts() == {"train": 192, "val": 48, "test": 20, "labelled": 20}
    assert both.unlabelled
    assert not part.unlabelled
    assert both.describe()["labelled"] == 20


def test_labels_may_be_unknown_from_the_start() -> None:
    data = arrays()
    labels = data.train[1].clone()
    labels[100:] = -1
    memory = Memory(Arrays((data.train[0], labels), data.test, data.names), batch_size=8, val=0.2, per_class=3)
    assert memory.counts() == {"train": 152, "val": 20, "test": 20, "labelled": 12}
    assert (memory.parts["val"][1] >= 0).all()


WRONG = {
    "fraction": ({"fraction": 1.5}, r"fraction must lie in \(0, 1\], got 1.5"),
    "none": ({"fraction": 0.0}, "fraction must lie in"),
    "negative": ({"per_class": -1}, "per_class must be at least 1"),
    "both": ({"fraction": 0.5, "per_class": 3}, "give fraction or per_class, not both"),
    "no subset": ({"unlabelled": True}, "set fraction or per_class with it"),
    "too many": ({"per_class": 49}, "per_class=49 exceeds the 48 training images of 'a'"),
    "too few": ({"per_class": 1}, "batch_size=8 exceeds the 4 training images"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_invalid_subsets_are_refused(case: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(InputError, match=case[1]):
        Memory(arrays(), batch_size=8, val=0.2, **case[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_over_labelled_samples(smoothing: float) -> None:
    student, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([1, -1, 3, -1, 0, 2])
    known = labels >= 0
    expected = F.cross_entropy(student[known], labels[known], label_smoothing=smoothing)
    loss = CE(smoothing)(student, labels)
    torch.testing.assert_close(loss, expected)
    soft = F.one_hot(labels.clamp(min=0), 4) * known[:, None] * 1.0
    torch.testing.assert_close(CE(smoothing)(student, soft), expected)
    torch.testing.assert_close(
        CE(smoothing)(student, soft * 0.5 + soft.roll(1, 1) * 0.5), mixed(student, soft, smoothing)
    )
    loss.backward()
    assert student.grad is not None
    assert (student.grad[~known] == 0).all()


def mixed(student: Tensor, soft: Tensor, smoothing: float) -> Tensor:
    known = soft.sum(1) > 0
    halves = soft[known] * 0.5 + soft[known].roll(1, 1) * 0.5
    return F.cross_entropy(student[known], halves, label_smoothing=smoothing)


@pytest.mark.parametrize("labels", [torch.full((3,), -1), torch.zeros(3, 4)], ids=["class-numbers", "probabilities"])
def test_cross_entropy_of_no_labels_is_zero_with_a_gradient_of_zero(labels: Tensor) -> None:
    student = torch.randn(3, 4, requires_grad=True)
    loss = CE()(student, labels)
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(3, 4))


class Own(nn.Module):
    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        return student.sum()


def test_terms_that_need_labels_refuse_to_start_without_them() -> None:
    Objective({"ce": Term(CE()), "kd": Term(KL())}).check_labels(unlabelled=True, mixed=True)
    Objective({"crd": Term(CRDBatch(other_class=False))}).check_labels(unlabelled=True, mixed=True)
    for name, loss in (("dkd", DKD()), ("crd", CRDBatch()), ("own", Own())):
        objective = Objective({"ce": Term(CE()), name: Term(loss)})
        objective.check_labels(unlabelled=False, mixed=False)
        with pytest.raises(InputError, match=rf"objective\.{name}: {type(loss).__name__} needs a label"):
            objective.check_labels(unlabelled=True, mixed=False)
        with pytest.raises(InputError, match=rf"objective\.{name}: {type(loss).__name__} needs class numbers"):
            objective.check_labels(unlabelled=False, mixed=True)


def test_soft_terms_use_unlabelled_samples() -> None:
    memory = Memory(arrays(), batch_size=48, val=0.2, per_class=5, unlabelled=True)
    batch: Batch = next(iter(memory.loader("train")))
    logits, teacher = torch.randn(48, 4, requires_grad=True), torch.randn(48, 4)
    objective = Objective({"ce": Term(CE(), 0.5), "kd": Term(KL(), 0.5)})
    total, parts = objective({"": logits}, batch.labels, {"": teacher})
    total.backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).all()
    torch.testing.assert_close(parts["kd"], KL()(logits.detach(), teacher))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["data.per_class=20", "data.unlabelled=true"], "objective.dkd: DKD needs a label for every sample"),
        (["data.mixup=0.2"], "objective.dkd: DKD needs class numbers as labels"),
    ],
)
def test_the_command_names_the_term_that_cannot(options: list[str], line: str, complain: Complain) -> None:
    assert line in complain("objective=dkd", *options)
