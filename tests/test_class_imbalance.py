"""Classes of unequal frequency: weights of classes, the focal loss, and a sampler that balances them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Complain, Run
from PIL import Image
from safetensors.torch import load_file
from stopping import launched
from torch import Tensor

import kd
from kd import Arrays, InputError, Memory, Objective, Term
from kd.data.folder import Folder
from kd.data.sampler import balanced, rounds
from kd.losses.cross_entropy import CE, cross_entropy
from kd.losses.focal import Focal, focal_loss

WEIGHT = torch.tensor([1.0, 3.0, 0.5, 0.0])


def batch(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, generator=generator, dtype=torch.float64), torch.arange(count) % 4


def built(loss: Any, labels: Tensor | None, classes: int = 4) -> Any:
    objective = Objective({"ce": Term(loss)})
    if labels is not None:
        objective.attach_data(len(labels), labels)
    logits = torch.zeros(2, classes, dtype=torch.float64)
    objective.build({"": logits}, None)
    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs_weighted_mean(smoothing: float) -> None:
    logits, labels = batch()
    expected = F.cross_entropy(logits, labels, WEIGHT.double(), label_smoothing=smoothing)
    loss = built(CE(smoothing, WEIGHT.tolist()), None)
    torch.testing.assert_close(loss(logits, labels), expected)


def test_weights_count_the_labelled_samples_only() -> None:
    logits, labels = batch()
    labels[::3] = -1
    expected = F.cross_entropy(logits[labels >= 0], labels[labels >= 0], WEIGHT.double())
    torch.testing.assert_close(cross_entropy(logits, labels, weight=WEIGHT), expected)
    assert cross_entropy(logits, torch.full((12,), -1), weight=WEIGHT) == 0
    assert cross_entropy(logits, torch.full((12,), 3), weight=WEIGHT) == 0, "a class of weight 0"


def test_weights_of_mixed_labels_agree_with_those_of_class_numbers() -> None:
    logits, labels = batch()
    one_hot = F.one_hot(labels, 4).double()
    torch.testing.assert_close(cross_entropy(logits, one_hot, weight=WEIGHT), cross_entropy(logits, labels, 0, WEIGHT))
    mixed = 0.3 * one_hot + 0.7 * one_hot.roll(1, 0)
    each = -(WEIGHT * mixed * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(
        cross_entropy(logits, mixed, weight=WEIGHT), each.sum() / (mixed @ WEIGHT.double()).sum()
    )


def test_balanced_weights_are_the_inverse_frequencies_of_the_labelled_training_images() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 1 + [-1] * 5)
    loss = built(CE(class_weights="balanced"), labels)
    torch.testing.assert_close(
        loss.class_weights.value, torch.tensor([10 / 24, 10 / 12, 10 / 4, 0], dtype=torch.float64)
    )
    assert "value" not in "".join(loss.state_dict()), "old checkpoints still fit"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([1, 2], "has 2 numbers for the data's 4 classes"),
        ([1, -1, 1, 1], "at least 0"),
        ([0, 0, 0, 0], "not all 0"),
        ([1, float("inf"), 1, 1], "finite"),
        ("balance", "a number for each class, or balanced"),
        ([], "not all 0"),
        (["a", 1, 1, 1], "finite numbers"),
        ("balanced", "needs data with train_labels"),
    ],
)
def test_wrong_class_weights_are_refused(wrong: Any, said: str) -> None:
    for kind in (CE, Focal):
        with pytest.raises(InputError, match=said):
            built(kind(class_weights=wrong), None)


def test_the_focal_loss_is_its_formula_and_without_gamma_cross_entropy() -> None:
    logits, labels = batch()
    q = logits.softmax(-1)[torch.arange(12), labels]
    torch.testing.assert_close(focal_loss(logits, labels, 2.0), -((1 - q) ** 2 * q.log()).mean())
    torch.testing.assert_close(focal_loss(logits, labels, 0.0), cross_entropy(logits, labels))
    weighted = cross_entropy(logits, labels, weight=WEIGHT)
    torch.testing.assert_close(focal_loss(logits, labels, 0.0, WEIGHT), weighted)
    mixed = 0.4 * F.one_hot(labels, 4).double() + 0.6 * F.one_hot(labels.roll(1), 4)
    torch.testing.assert_close(focal_loss(logits, mixed, 0.0), cross_entropy(logits, mixed))
    labels[::2] = -1
    torch.testing.assert_close(focal_loss(logits, labels, 1.5), focal_loss(logits[1::2], labels[1::2], 1.5))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_gradient_is_finite_for_confident_answers(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [0.0, 0.0], [-200.0, 200.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(focal_loss(logits, torch.tensor([0, 1, 0]), gamma), logits)
    assert gradient.isfinite().all()


def test_focal_loss_is_registered() -> None:
    assert kd.losses["focal"] is Focal
    with pytest.raises(InputError, match="gamma"):
        Focal(gamma=-1)


IMBALANCED = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)[
    torch.randperm(100, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize("epoch", range(4))
def test_balanced_epoch_draws_classes_equally(epoch: int) -> None:
    order, times = balanced(IMBALANCED, 0, epoch)
    assert len(order) == 100
    assert sorted(IMBALANCED[order].bincount().tolist()) == [33, 33, 34]
    pairs = set(zip(order.tolist(), times.tolist()))
    assert len(pairs) == 100, "no image comes twice the same time"
    assert int(times.max()) + 1 <= rounds(IMBALANCED) == 4
    rare = order[IMBALANCED[order] == 2].bincount(minlength=100)[IMBALANCED == 2]
    assert int(rare.max() - rare.min()) <= 1
    common = order[IMBALANCED[order] == 0]
    assert len(common.unique()) == len(common)


def test_balanced_draws_differ_by_epoch_and_seed_and_cover_all_images() -> None:
    first, again = balanced(IMBALANCED, 0, 0)[0], balanced(IMBALANCED, 0, 0)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, balanced(IMBALANCED, 0, 1)[0])
    assert not torch.equal(first, balanced(IMBALANCED, 1, 0)[0])
    counts = torch.cat([balanced(IMBALANCED, 0, epoch)[0] for epoch in range(300)]).bincount(minlength=100)
    expected = torch.tensor([10_000 / 70, 10_000 / 20, 10_000 / 10])[IMBALANCED]
    assert (counts / expected - 1).abs().max() < 0.35
    for label in range(3):
        assert float(counts[label == IMBALANCED].sum()) / 30_000 == pytest.approx(1 / 3, abs=1e-3)


def test_unlabelled_images_are_drawn_once_each() -> None:
    labels = torch.cat([IMBALANCED, torch.full((50,), -1)])
    order, _ = balanced(labels, 3, 1)
    assert sorted(order[labels[order] < 0].tolist()) == list(range(100, 150))
    assert sorted(labels[order][labels[order] >= 0].bincount().tolist()) == [33, 33, 34]


def memory(**options: Any) -> Memory:
    images = torch.randint(0, 256, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    arrays = Arrays((images, IMBALANCED), (images, IMBALANCED), ("a", "b", "c"))
    return Memory(arrays, batch_size=5, val="test", sampler="balanced", **options)


def given(memory: Memory, epoch: int = 0, **place: int) -> list[int]:
    loader = memory.loader("train", 0, lambda: epoch, **place)
    return [int(i) for batch in loader for i in batch.index]


def test_balanced_order_is_independent_of_processes_and_of_the_start() -> None:
    data = memory()
    whole = given(data)
    parts = [given(data, rank=rank, world=4) for rank in range(4)]
    assert [i for step in zip(*parts) for i in step] == whole
    assert given(data, start=40) == whole[40:]
    assert [i for step in zip(*(given(data, rank=r, world=2, start=20) for r in range(2))) for i in step] == whole[20:]


def test_repeated_image_in_an_epoch_gets_another_view() -> None:
    data = memory(pad=2, flip=True)
    seen: dict[int, list[bytes]] = {}
    for raw in data.loader("train", 0, lambda: 1):
        drawn = data.augment(raw, 0, 1)
        for i, pixels in zip(drawn.index.tolist(), drawn.images):
            seen.setdefault(i, []).append(pixels.numpy().tobytes())
    again = [pixels for pixels in seen.values() if len(pixels) > 1]
    assert again
    assert sum(len(set(pixels)) for pixels in again) > 0.8 * sum(map(len, again))


def test_validation_and_test_are_not_balanced() -> None:
    data = memory()
    for part in ("val", "test"):
        assert [int(i) for batch in data.loader(part) for i in batch.index] == list(range(100))


def test_invalid_samplers_are_refused(complain: Complain) -> None:
    assert "unknown sampler 'balance'; did you mean 'balanced'?" in complain("data.sampler=balance")
    with pytest.raises(InputError, match="give one of them"):
        memory(repeats=2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures of one class and four of another, each of a colour of its own."""
    for part in ("train", "val"):
        for name, count in (("cat", 12), ("dog", 4)):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (20 * i, 100, 10 * i)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def folder(root: Path, **options: Any) -> Folder:
    options = {"size": 8, "batch_size": 4, "val": "test", "workers": 0, "sampler": "balanced", **options}
    return Folder(str(root), **options)


def test_pictures_in_files_are_balanced_with_any_number_of_workers(pictures: Path) -> None:
    batches = [list(folder(pictures, workers=workers).train_dataloader()) for workers in (0, 2)]
    labels = torch.cat([batch.labels for batch in batches[0]])
    assert labels.bincount().tolist() == [8, 8]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.images, other.images)
    rare = [i.numpy().tobytes() for b in batches[0] for i, label in zip(b.images, b.labels) if label == 1]
    assert len(rare) == 8
    whole = [int(i) for batch in batches[0] for i in batch.index]
    later = folder(pictures)
    later.start = 8
    assert [int(i) for batch in later.train_dataloader() for i in batch.index] == whole[8:]


def test_resumed_balanced_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ["data.sampler=balanced", "data.pad=1", "student=cnn", "objective.ce.class_weights=balanced", "logger=none"]
    strike = [f"+callbacks.saboteur.{key}" for key in ("_target_=saboteur.Saboteur", "moment=step", "epoch=1")]
    strike += [f"+callbacks.saboteur.{key}" for key in ("batch=2", "signum=15", "mark=mark")]
    whole = launched(tmp_path, *words, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert launched(tmp_path, *words, *strike, "hydra.run.dir=stopped").returncode == 143
    going = launched(tmp_path, *words, "resume=stopped", "trust=true")
    assert going.returncode == 0, going.stderr
    states = [load_file(tmp_path / run / "student.safetensors") for run in ("whole", "stopped")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_command_line_options_for_class_imbalance(kd_train: Run, tmp_path: Path) -> None:
    words = ["teacher=resnet8", "student=cnn", "epochs=1", "logger=none", "trainer.enable_progress_bar=false"]
    words += ["teacher.min_accuracy=0", "loss@objective.ce=focal", "objective.ce.gamma=1.5", "data.sampler=balanced"]
    done = kd_train(*words, "objective.ce.class_weights=[1,1,1,1,1,1,1,1,1,2]", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    terms = json.loads((tmp_path / "run/summary.json").read_text())["objective"]["terms"]
    assert any(line.startswith("ce = Focal(gamma=1.5, class_weights=[1, 1,") for line in terms), terms


def test_misspelt_class_weights_option_gets_a_suggestion(complain: Complain) -> None:
    for wrong in ("class_weight", "classweights", "class_wts"):
        assert "did you mean objective.ce.class_weights?" in complain(f"objective.ce.{wrong}=balanced")
