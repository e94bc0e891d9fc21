"""Images and labels of the user: converted where they are unambiguous, refused with a one-line error elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kd
from kd import Arrays, InputError, Memory
from kd.data.adapt import Adapter
from kd.data.arrays import adapted
from kd.distill.metrics import Scores
from kd.losses import CE, JS, KL, TV, Entropy, ReverseKL, SoftCE, SymmetricKL, cross_entropy
from kd.losses.cross_entropy import labelled

N = 12
NAMES = ("ant", "bee", "cow")
IMAGES = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 3


def given(images: Any = IMAGES, labels: Any = LABELS, names: Any = NAMES) -> Arrays:
    return adapted(Arrays((images, labels), (images, labels), names))


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as refused:
        given(*args, **kwargs)
    assert "\n" not in str(refused.value)
    return str(refused.value)


SAME_LABELS = {
    "numpy": LABELS.numpy(),
    "int32": LABELS.int(),
    "uint8": LABELS.byte(),
    "numpy uint16": LABELS.numpy().astype(np.uint16),
    "whole floats": LABELS.float(),
    "one column": LABELS[:, None],
    "one column of floats": LABELS[:, None].numpy().astype(np.float64),
    "list": LABELS.tolist(),
    "list of numpy numbers": list(LABELS.numpy()),
    "list of tensors": list(LABELS),
    "names": [NAMES[i] for i in LABELS],
    "numpy names": np.array([NAMES[i] for i in LABELS]),
    "objects": np.array([NAMES[i] for i in LABELS], dtype=object),
    "one-hot": torch.nn.functional.one_hot(LABELS),
    "one-hot floats": torch.nn.functional.one_hot(LABELS).double().numpy(),
}


@pytest.mark.parametrize("kind", SAME_LABELS)
def test_every_unambiguous_kind_of_labels_is_converted(kind: str) -> None:
    labels = given(labels=SAME_LABELS[kind]).train[1]
    assert labels.dtype == torch.int64
    assert torch.equal(labels, LABELS)


SAME_IMAGES = {
    "numpy": IMAGES.numpy(),
    "channels last": IMAGES.permute(0, 2, 3, 1).numpy(),
    "int64": IMAGES.long(),
    "int32 numpy": IMAGES.numpy().astype(np.int32),
    "float in [0, 1]": IMAGES.float() / 255,
    "double in [0, 1]": IMAGES.double().numpy() / 255,
    "list of tensors": list(IMAGES),
    "list of arrays": list(IMAGES.permute(0, 2, 3, 1).numpy()),
    "list of Pillow images": [Image.fromarray(each) for each in IMAGES.permute(0, 2, 3, 1).numpy()],
}


@pytest.mark.parametrize("kind", SAME_IMAGES)
def test_every_unambiguous_kind_of_images_is_converted(kind: str) -> None:
    images = given(images=SAME_IMAGES[kind]).train[0]
    assert images.dtype == torch.uint8
    assert torch.equal(images, IMAGES)


def test_images_without_channels_get_one() -> None:
    assert torch.equal(given(IMAGES[:, 0]).train[0], IMAGES[:, :1])
    assert torch.equal(given(IMAGES[:, 0] > 100).train[0], (IMAGES[:, :1] > 100) * torch.tensor(255, dtype=torch.uint8))


BAD_LABELS = {
    "multi-hot": (torch.tensor([[1, 1, 0]] * N), "are multi-hot: a row has 2 classes"),
    "multi-hot floats": (torch.tensor([[1.0, 1, 0]] * N), "are multi-hot"),
    "logits": (torch.randn(N, 3), "are not class probabilities"),
    "probabilities": (torch.full((N, 3), 1 / 3), "needs one class number per image"),
    "other width": (torch.ones(N, 5), "are [12, 5], not class numbers [B] or probabilities [B, 3]"),
    "fractions": (LABELS + 0.5, "that are not integers"),
    "nan": (LABELS * torch.nan, "that are not integers"),
    "too high": (LABELS + 1, "the data has the label 3, expected 0 to 2; they seem to count from 1"),
    "too low": (LABELS - 2, "the data has the label -2, expected 0 to 2; an unknown label is -1"),
    "ignored": (LABELS * 0 - 100, "the data has the label -100"),
    "unknown name": (["ant", "bee", "cwo"] * 4, "'cwo'; did you mean 'cow'?"),
    "masks": (torch.zeros(N, 8, 8, dtype=torch.long), "are [12, 8, 8], not class numbers [B]"),
    "too few": (LABELS[:5], "the training set has 12 images and 5 labels"),
    "nothing": ([None] * N, "the training labels are a list of NoneType, not a tensor"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_ambiguous_labels_are_refused(kind: str) -> None:
    labels, said = BAD_LABELS[kind]
    assert said in refusal(labels=labels)


BAD_IMAGES = {
    "float 0..255": (IMAGES.float(), "divide them by their largest possible value (255 for bytes)"),
    "normalised": (IMAGES.float() / 255 * 4 - 2, "which looks normalised"),
    "int64 beyond bytes": (IMAGES.long() * 5, "expected 0 to 255"),
    "negative": (IMAGES.long() - 300, "expected 0 to 255"),
    "nan": (IMAGES.float() * torch.nan, "have values that are not finite"),
    "complex": (IMAGES.to(torch.complex64), "complex"),
    "flat": (IMAGES.flatten(1), "are [12, 192], not [B, C, H, W]"),
    "several sizes": ([torch.zeros(3, 8, 8)] * 11 + [torch.zeros(3, 9, 9)], "have several shapes"),
    "words": (["a.png"] * N, "the training images are a list of str, not a tensor"),
    "none": (torch.zeros(0, 3, 8, 8), "the training set has 0 images and 12 labels"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_ambiguous_images_are_refused(kind: str) -> None:
    images, said = BAD_IMAGES[kind]
    assert said in refusal(images)


def test_class_names_default_to_the_labels() -> None:
    assert given(labels=["cow", "ant", "bee"] * 4, names=()).names == NAMES
    assert given(names=()).names == ("0", "1", "2")
    assert given(names=list(NAMES)).names == NAMES


def test_repeated_or_too_few_names_are_refused() -> None:
    assert "names has 'ant' twice" in refusal(names=("ant", "bee", "ant"))
    assert "are out of range for 2 classes" in refusal(names=("ant", "bee"))
    with pytest.raises(InputError, match="the test set has 12 images without a label"):
        adapted(Arrays((IMAGES, LABELS), (IMAGES, LABELS * 0 - 1), NAMES))
    with pytest.raises(InputError, match="mean has 1 numbers for images of 3 channels"):
        adapted(Arrays((IMAGES, LABELS), (IMAGES, LABELS), NAMES, (0.5,), (0.5,)))
    with pytest.raises(InputError, match=r"a data set must be kd\.Arrays.* not a tuple of Tensor"):
        adapted((IMAGES, LABELS))


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="the data has 1 class, but classification needs at least 2"):
        Scores(Memory(given(labels=LABELS * 0, names=("ant",)), batch_size=4).classes, False)


def test_an_unknown_training_label_stays_unknown() -> None:
    train = torch.where(LABELS == 2, -1, LABELS)
    assert Memory(Arrays((IMAGES, train), (IMAGES, LABELS), NAMES), batch_size=2).unlabelled


def test_dense_labels_give_the_mean_over_pixels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 11, 8, 8), torch.randint(0, 11, (8, 8, 8))
    torch.testing.assert_close(CE()(logits, labels), torch.nn.functional.cross_entropy(logits, labels))
    labels[0] = -1
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    torch.testing.assert_close(CE()(logits, labels), expected)
    soft = torch.randn(8, 11, 8, 8).softmax(1)
    torch.testing.assert_close(CE()(logits, soft), torch.nn.functional.cross_entropy(logits, soft))
    assert labelled(soft).shape == (8, 8, 8)


def test_rows_that_are_no_distribution_are_not_taken_as_probabilities() -> None:
    with pytest.raises(InputError, match=r"sums to 2: .*multi-hot"):
        cross_entropy(torch.randn(2, 3), torch.tensor([[1.0, 1, 0], [0, 0, 1]]))
    for labels in (torch.tensor([[0, 1, 0]] * 2), torch.zeros(3, dtype=torch.long), torch.rand(2, 4)):
        with pytest.raises(InputError, match="cross-entropy takes"):
            cross_entropy(torch.randn(2, 3), labels)
    assert torch.isfinite(cross_entropy(torch.randn(2, 3), torch.tensor([0, 1], dtype=torch.int32)))


@pytest.mark.parametrize("loss", [KL, ReverseKL, SymmetricKL, SoftCE, JS, TV])
def test_logits_of_one_class_are_refused_as_their_divergence_is_0(loss: Any) -> None:
    with pytest.raises(InputError, match=r"over classes and needs two at least, got \[8, 1\]"):
        loss()(torch.randn(8, 1), torch.randn(8, 1))


@pytest.mark.parametrize("name", ["dist", "dkd", "nkd", "wsld", "mlkd", "ctkd", "ttm", "wttm", "deit_hard", "tfkd"])
def test_every_loss_on_logits_refuses_one_class(name: str) -> None:
    loss, logits = kd.losses[name](), torch.randn(8, 1)
    if hasattr(loss, "build"):
        loss.build(logits, logits)
    words = {"student": logits, "teacher": logits, "labels": torch.zeros(8, dtype=torch.long)}
    needs = kd.Term(loss).needs
    with pytest.raises(InputError):
        loss(**{word: words[word] for word in needs})


def test_cross_entropy_and_entropy_of_one_class_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes"):
        CE()(torch.randn(8, 1), torch.zeros(8, dtype=torch.long))
    with pytest.raises(InputError, match="at least 2 classes"):
        Entropy()(torch.randn(8, 1))


PIXELS, SHAPE = IMAGES[:4].float() / 255, (3, 8, 8)
BATCHES = {
    "pair": (PIXELS, LABELS[:4]),
    "list": [PIXELS, LABELS[:4]],
    "path": (PIXELS, LABELS[:4], ["a.png", "b.png", "c.png", "d.png"]),
    "image and label": {"image": PIXELS, "label": LABELS[:4]},
    "pixel_values and labels": {"pixel_values": PIXELS, "labels": LABELS[:4], "path": ["a"] * 4},
    "x and y": {"x": PIXELS, "y": LABELS[:4].int()},
    "numpy": (PIXELS.numpy(), LABELS[:4].numpy()),
    "channels last": (PIXELS.permute(0, 2, 3, 1), LABELS[:4]),
    "not collated": list(zip(PIXELS, LABELS[:4].tolist())),
    "lists": (list(PIXELS), ["ant", "bee", "cow", "ant"]),
    "double": (PIXELS.double(), LABELS[:4].double()),
    "half": (IMAGES[:4].long(), LABELS[:4]),
    "batch": kd.Batch(IMAGES[:4], LABELS[:4]),
    "one-hot": (PIXELS, torch.nn.functional.one_hot(LABELS[:4])),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_every_unambiguous_structure_are_read(kind: str) -> None:
    batch = Adapter(3, SHAPE, NAMES)(BATCHES[kind])
    pixels = batch.images.float() / (255 if batch.images.dtype == torch.uint8 else 1)
    torch.testing.assert_close(pixels, PIXELS)
    assert torch.equal(batch.labels, LABELS[:4])
    assert batch.labels.dtype == torch.int64
    assert batch.index is None


def test_third_element_is_an_index_only_where_it_can_be_one() -> None:
    adapt, index = Adapter(3, SHAPE), torch.tensor([7, 3, 1, 2])
    assert torch.equal(adapt((PIXELS, LABELS[:4], index)).index, index)
    assert torch.equal(adapt({"image": PIXELS, "label": LABELS[:4], "index": index}).index, index)
    for other in (torch.rand(4), torch.zeros(4, 2).long(), torch.tensor([True] * 4), "words"):
        assert adapt((PIXELS, LABELS[:4], other)).index is None


BAD_BATCHES = {
    "normalised": ((PIXELS * 4 - 2, LABELS[:4]), "which looks normalised; expected uint8, or float in [0, 1]"),
    "float 0..255": ((PIXELS * 255, LABELS[:4]), "divide them by their largest possible value"),
    "other shape": ((PIXELS[:, :, :4], LABELS[:4]), "declared shape [C, H, W] is [3, 8, 8]; set shape=[3, 4, 8]"),
    "other channels": ((PIXELS[:, :1], LABELS[:4]), "but the declared shape [C, H, W] is [3, 8, 8]"),
    "stray label": ((PIXELS, LABELS[:4] + 5), "the data has the label 7, expected 0 to 2"),
    "-100": ((PIXELS, LABELS[:4] * 0 - 100), "the data has the label -100"),
    "multi-hot": ((PIXELS, torch.ones(4, 3)), "are multi-hot"),
    "unequal": ((PIXELS, LABELS[:3]), "has 4 images and 3 labels"),
    "no images": ({"picture": PIXELS, "label": LABELS[:4]}, "its keys are picture, label; accepted: images, image"),
    "two images": ({"image": PIXELS, "x": PIXELS}, "a batch has several images: image, x"),
    "varying sizes": (([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)], [0, 1]), "have several shapes"),
    "nothing": (None, "a batch must be (images, labels) or a dict of them, got a NoneType"),
    "single": ((PIXELS[0], LABELS[0]), "add a batch dimension to a single image"),
    "words without names": ((PIXELS, ["a"] * 4), "set `names`"),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_ambiguous_batches_are_refused(kind: str) -> None:
    raw, said = BAD_BATCHES[kind]
    with pytest.raises(InputError) as refused:
        Adapter(3, SHAPE)(raw)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_images_of_validation_that_are_not_finite_are_refused() -> None:
    adapt = Adapter(3, SHAPE)
    adapt((PIXELS, LABELS[:4]), "val")
    with pytest.raises(InputError, match="the val images have values that are not finite"):
        adapt((PIXELS * torch.nan, LABELS[:4]), "val")


def test_batches_without_labels_get_unknown_labels() -> None:
    adapt = Adapter(3, SHAPE)
    for raw in (PIXELS, {"image": PIXELS}, (PIXELS,)):
        assert (adapt(raw).labels == -1).all()
    assert adapt.unlabelled
    assert adapt.without_labels


def test_scores_count_labelled_samples_only() -> None:
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(20, 12), torch.randn(20, 12), torch.randint(0, 12, (20,))
    labels[::3] = -1
    known = labels >= 0
    some, all_known, none = (Scores(12, True) for _ in range(3))
    some.update(student, labels, teacher)
    all_known.update(student[known], labels[known], teacher[known])
    for name in ("acc", "top5", "nll", "ece", "teacher_acc", "teacher_nll"):
        torch.testing.assert_close(some.named()[name].compute(), all_known.named()[name].compute())
    none.update(student, labels * 0 - 1, teacher)
    assert all(none.named()[name].compute().isnan() for name in ("acc", "top5", "nll", "ece", "teacher_acc"))
    assert none.named()["agreement"].compute().isfinite()


def test_scores_take_the_likeliest_class_of_probabilities() -> None:
    torch.manual_seed(0)
    student, soft = torch.randn(20, 5), torch.randn(20, 5).softmax(-1)
    scores = Scores(5, False)
    scores.update(student, soft, None)
    share = (student.argmax(1) == soft.argmax(1)).float().mean()
    torch.testing.assert_close(scores.named()["acc"].compute(), share)
    expected = torch.nn.functional.cross_entropy(student, soft)
    torch.testing.assert_close(scores.named()["nll"].compute(), expected)


def test_labels_of_the_hub_may_be_numbers_or_words() -> None:
    from kd.data.hub import _label_column

    kinds = {name: type(name, (), {}) for name in ("ClassLabel", "Value", "Image")}
    columns = {"image": kinds["Image"](), "id": kinds["Value"](), "label": kinds["Value"]()}
    assert _label_column(columns, "") == "label"
    assert _label_column(columns, "id") == "id"
    assert _label_column({**columns, "fine": kinds["ClassLabel"]()}, "") == "fine"
    with pytest.raises(InputError, match=r"data\.label: none of the columns"):
        _label_column({"image": kinds["Image"](), "id": kinds["Value"]()}, "")
