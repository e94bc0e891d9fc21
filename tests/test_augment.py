"""Computed randomness: what the augmentations do, how they are distributed, and what they do not depend on."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from kd import Arrays, Batch, Memory
from kd.data.augment import crop_flip, view_count, views
from kd.errors import InputError
from kd.rng import hashed

SHAPE = (3, 12, 10)
COUNT = 96


def arrays(count: int = COUNT, shape: tuple[int, ...] = SHAPE, classes: int = 4) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, *shape), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % classes
    return Arrays((images, labels), (images[:8], labels[:8]), tuple("abcdefghij"[:classes]))


def memory(data: Arrays | None = None, **options: Any) -> Memory:
    return Memory(data or arrays(), **{"batch_size": 8, "val": "test", **options})


def augmented(of: Memory, index: Tensor, seed: int = 1, epoch: int = 0) -> Batch:
    images, labels = of.parts["train"]
    return of.augment(Batch(images[index], labels[index], index), seed, epoch)


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "crop": {"pad": 2},
    "flip": {"flip": True},
    "reflect": {"pad": 3, "flip": True, "border": "reflect"},
    "erase": {"erase": 0.5, "pad": 1},
    "cutout": {"cutout": 5},
    "both erased": {"cutout": 3, "erase": 0.9},
    "mixup": {"mixup": 0.3, "flip": True},
    "cutmix": {"cutmix": 1.0},
    "all": {"pad": 2, "flip": True, "erase": 0.3, "cutout": 4, "mixup": 0.5, "cutmix": 0.7},
    "transform": {"transform": "trivialaugmentwide", "pad": 1},
    "resized crop": {"scale": [0.2, 1.0]},
    "jitter": {"jitter": 0.6, "flip": True},
    "strong": {"pad": 1, "flip": True, "scale": [0.3, 0.8], "jitter": 1.0, "erase": 0.5},
}
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@EVERY
@pytest.mark.parametrize("keep", [0, 3])
def test_a_sample_does_not_depend_on_its_batch(options: dict[str, Any], keep: int) -> None:
    of = memory(**options, views=keep)
    index = torch.tensor([5, 90, 7, 33])
    together = augmented(of, index, seed=3, epoch=4)
    alone = [augmented(of, index[i : i + 1], seed=3, epoch=4) for i in range(4)]
    assert together.images.dtype == torch.uint8
    assert torch.equal(together.images, torch.cat([batch.images for batch in alone]))
    assert torch.equal(together.labels, torch.cat([batch.labels for batch in alone]))


@EVERY
@pytest.mark.parametrize("keep", [0, 3])
def test_pixels_are_a_function_of_index_and_view_where_views_are_counted(options: dict[str, Any], keep: int) -> None:
    of = memory(**options, views=keep)
    countable = keep or not set(options) - {"pad", "flip", "border"}
    assert bool(of.views) == bool(countable)
    index = torch.arange(COUNT)
    known: dict[tuple[int, int], bytes] = {}
    for seed, epoch in ((s, e) for s in (0, 7) for e in range(6)):
        batch = augmented(of, index, seed, epoch)
        if not countable:
            assert batch.view is None
            continue
        assert batch.view is not None
        assert batch.view.min() >= 0
        assert batch.view.max() < of.views
        for i, v, image in zip(index.tolist(), batch.view.tolist(), batch.images):
            assert known.setdefault((i, v), image.numpy().tobytes()) == image.numpy().tobytes()
    if keep:
        assert len(known) > COUNT * 2.9
    if keep and options:
        shown = [len({pixels for (i, _), pixels in known.items() if i == j}) for j in range(COUNT)]
        assert sum(shown) > COUNT


@EVERY
def test_description_of_augmentations_is_plain_containers(options: dict[str, Any]) -> None:
    told = [json.dumps(memory(**given, views=k).augmentation()) for given in OPTIONS.values() for k in (0, 5)]
    assert len(set(told)) == len(told)
    assert json.dumps(memory(**options).augmentation()) == json.dumps(memory(**options).augmentation())


def test_description_includes_the_options_of_a_transform() -> None:
    node = {"_target_": "torchvision.transforms.v2.RandAugment", "magnitude": 3}
    told = memory(transform=node).augmentation()["transform"]
    assert told != memory(transform={**node, "magnitude": 4}).augmentation()["transform"]
    assert told == memory(transform=node).augmentation()["transform"]
    assert "magnitude" in json.dumps(told)


def test_the_training_images_have_a_fingerprint_of_their_own() -> None:
    whole = memory(arrays())
    assert whole.train_sha256() == memory(arrays(), flip=True).train_sha256()
    assert whole.train_sha256() != memory(arrays(), val=0.1).train_sha256()
    other = arrays()
    other.train[0][3, 0, 0, 0] ^= 1
    assert whole.train_sha256() != memory(other).train_sha256()
    assert whole.describe()["sha256"] != memory(other).describe()["sha256"]


@pytest.mark.parametrize("border", ["edge", "reflect"])
def test_border_may_repeat_the_edge_of_the_image(border: str) -> None:
    pad = 3
    images = torch.rand(view_count(pad, True), 2, 7, 5)
    found = crop_flip(images, torch.arange(len(images)), pad, True, border)
    padded = F.pad(images, (pad,) * 4, mode={"edge": "replicate", "reflect": "reflect"}[border])
    for v in range(len(images)):
        dy, dx = divmod(v // 2, 2 * pad + 1)
        expected = padded[v, :, dy : dy + 7, dx : dx + 5]
        assert torch.equal(found[v], expected.flip(-1) if v % 2 else expected)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def test_choices_of_neighbours_epochs_seeds_and_streams_are_unrelated() -> None:
    index, n = torch.arange(100_000), 100_000
    drawn = hashed(5, 9, index, 2)
    others = [hashed(5, 10, index, 2), hashed(6, 9, index, 2), hashed(5, 9, index, 3), hashed(9, 5, index, 2)]
    for other in (*others, drawn.roll(1), drawn.roll(2), drawn.roll(1000)):
        assert abs(correlation(drawn, other)) < 4 / n**0.5
        assert abs(correlation(drawn % 2, other % 2)) < 4 / n**0.5
        assert abs(float(((drawn ^ other) & 0xFF == 0).float().mean()) * 256 - 1) < 0.2
    view = views(index, 5, 9, 4, True)
    assert abs((view % 2).float().mean() - 0.5) < 2 / n**0.5
    for offset in (1, 2, 50_000):
        assert abs(correlation(view, view.roll(offset))) < 4 / n**0.5
    per_sample = torch.stack([views(index[:2000], 5, epoch, 4, True) for epoch in range(162)])
    seen = torch.tensor([len(row.unique()) for row in per_sample.T]).float().mean()
    assert abs(seen - 162 * (1 - (1 - 1 / 162) ** 162)) < 0.5  # of 162 views, 162 draws meet 102.6


def boxes(of: Memory, epochs: int = 40) -> Tensor:
    """Which pixels were painted [N, H, W], of images without the colour of the paint."""
    index = torch.arange(len(of.parts["train"][1]))
    return torch.cat([(augmented(of, index, 2, epoch).images == 0).all(1) for epoch in range(epochs)])


def white(count: int = 200, size: int = 32) -> Arrays:
    images = torch.full((count, 3, size, size), 255, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    return Arrays((images, labels), (images[:4], labels[:4]), ("a", "b"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_random_erasing_takes_the_share_and_the_area_asked() -> None:
    painted = boxes(memory(white(), erase=0.25, erase_area=[0.1, 0.3]))
    area = painted.flatten(1).float().mean(1)
    erased = area > 0
    assert abs(erased.float().mean() - 0.25) < 3 * (0.25 * 0.75 / len(area)) ** 0.5
    assert abs(area[erased].mean() - 0.2) < 0.01
    assert area[erased].min() > 0.09
    assert area[erased].max() < 0.32
    places = painted.float().mean(0)
    assert places.argmax() % 32 in range(12, 20)  # a box inside the image covers the middle most
    assert correlation(places.flatten(), places.flip(0, 1).flatten()) > 0.95
    height, width = painted[erased].any(2).sum(1), painted[erased].any(1).sum(1)
    assert torch.equal(height * width, painted[erased].flatten(1).sum(1))
    assert abs((height > width).float().mean() - (height < width).float().mean()) < 0.05


def test_cutout_takes_a_square_whose_centre_is_any_pixel() -> None:
    painted = boxes(memory(white(), cutout=8))
    area = painted.flatten(1).sum(1).double()
    inside = sum(min(32, c + 4) - max(0, c - 4) for c in range(32)) / 32
    assert abs(area.mean() - inside**2) < 0.7
    assert area.max() == 64
    assert area.min() == 16
    centre = painted[:, 8:24, 8:24].float().mean((0, 1, 2))
    assert abs(centre.mean() - 64 / 1024) < 0.003


def test_erased_area_has_the_mean_colour() -> None:
    data = arrays()
    of = memory(Arrays(data.train, data.test, data.names, (0.2, 0.4, 0.6), (1.0, 1.0, 1.0)), cutout=6)
    images = augmented(of, torch.arange(COUNT)).images
    changed = (images != data.train[0]).any(1)
    assert images.permute(0, 2, 3, 1)[changed].unique(dim=0).tolist() == [[51, 102, 153]]


def constant(count: int = 2000, classes: int = 10) -> Arrays:
    """Images of one value each, 20 times the class."""
    labels = torch.arange(count) % classes
    images = (labels * 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    return Arrays((images, labels), (images[:10], labels[:10]), tuple("abcdefghij"))


def mixed(**options: Any) -> tuple[Batch, Tensor]:
    """The mixed batch of constant images, and each sample's own share."""
    of = memory(constant(), **options)
    labels = of.parts["train"][1]
    batch = augmented(of, torch.arange(len(labels)), 3, 5)
    return batch, batch.labels.gather(1, labels[:, None]).squeeze(1)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pixels_are(kind: str) -> None:
    batch, _ = mixed(**{kind: 1.0})
    assert batch.labels.shape == (2000, 10)
    assert torch.equal(batch.labels.sum(1), torch.ones(2000))
    assert ((batch.labels > 0).sum(1) <= 2).all()
    expected = batch.labels @ (torch.arange(10) * 20.0)
    pixels = batch.images.float().mean((1, 2, 3))
    assert (pixels - expected).abs().max() < (0.51 if kind == "mixup" else 0.01)
    values = torch.tensor([len(image.unique()) for image in batch.images])
    assert values.max() == (1 if kind == "mixup" else 2)


def test_shares_follow_the_beta_distribution_and_partners_are_uniform() -> None:
    from scipy.stats import beta

    mixing = memory(constant(), mixup=1.0)._mixing
    assert mixing is not None
    partners = mixing.partner(torch.arange(2000), 2000, 3, 5)
    counts = (partners // 100).bincount(minlength=20).double()
    assert ((counts - 100) ** 2 / 100).sum() < 43.8  # 19 degrees of freedom, p = 0.001
    other = partners % 10 != torch.arange(2000) % 10
    for alpha in (0.2, 1.0, 4.0):
        shares = mixed(mixup=alpha)[1][other]
        for at in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999):
            p = beta(alpha, alpha).cdf(at)
            assert abs((shares < at).double().mean() - p) < 4 * (p * (1 - p) / len(shares)) ** 0.5
    _, own = mixed(cutmix=1.0)
    assert 0.66 < own[other].mean() < 0.72  # not a half: boxes are cut off at the border, E = 0.68, and rounded down


def test_mixup_and_cutmix_together_alternate_by_sample() -> None:
    batch, own = mixed(mixup=1.0, cutmix=1.0)
    flat = torch.tensor([len(image.unique()) == 1 for image in batch.images])
    between = flat & (own < 0.99)
    assert 0.38 < between.float().mean() < 0.5  # half, less those whose partner is of their own class


def test_mixing_partner_has_its_own_augmentation() -> None:
    data = arrays(count=2)
    of = memory(data, batch_size=1, pad=2, flip=True, mixup=1.0)
    plain = memory(data, batch_size=1, pad=2, flip=True)
    index = torch.tensor([0, 1])
    for epoch in range(20):
        batch, alone = augmented(of, index, 1, epoch), augmented(plain, index, 1, epoch).images.double()
        share = batch.labels.double()[:, :2]
        expected = share[:, 0, None, None, None] * alone[0] + share[:, 1, None, None, None] * alone[1]
        assert (batch.images.double() - expected).abs().max() <= 0.501


def test_unlabelled_samples_have_no_mixed_label() -> None:
    of = memory(constant(), mixup=1.0, fraction=0.5, unlabelled=True)
    batch = augmented(of, torch.arange(2000), 3, 5)
    known = of.parts["train"][1] >= 0
    weight = batch.labels.sum(1)
    assert set(weight.unique().tolist()) == {0.0, 1.0}
    assert (weight[~known] == 0).all()
    assert 0.4 < weight[known].mean() < 0.6
    assert (batch.images[~known].float().mean((1, 2, 3)) % 20 != 0).any()  # their pixels are mixed all the same


def test_transform_does_not_change_global_random_state() -> None:
    of = memory(transform=["randaugment", "randomhorizontalflip"])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = augmented(of, torch.arange(8))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.images, augmented(of, torch.arange(8)).images)
    assert not torch.equal(first.images, augmented(of, torch.arange(8), epoch=1).images)


@given(st.integers(0, 2**32 - 1), st.integers(0, 10_000), st.integers(0, 2**31 - 1))
def test_a_hash_is_the_same_for_numbers_and_tensors(seed: int, epoch: int, position: int) -> None:
    index = torch.tensor([position, position + 1])
    whole = hashed(seed, epoch, index, 3)
    assert torch.equal(whole, hashed(seed, torch.tensor([epoch, epoch]), index, torch.tensor(3)))
    assert (whole >= 0).all()
    assert (whole < 2**32).all()


FULL = {"pad": 2, "flip": True, "erase": 0.5, "cutout": 4, "mixup": 0.5, "cutmix": 0.7, "views": 6}


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("aot_eager", OPTIONS["crop"]),
        ("aot_eager", FULL),
        ("aot_eager", OPTIONS["strong"]),
        pytest.param("inductor", {"pad": 2, "flip": True}, marks=pytest.mark.slow),
    ],
)
def test_compiling_changes_no_pixel(backend: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    of = memory(**options)
    compiled = torch.compile(lambda *fields: of.augment(Batch(*fields[:3]), 1, fields[3]), backend=backend)
    index = torch.arange(16)
    for epoch in (0, 1):
        expected = augmented(of, index, 1, epoch)
        found = compiled(of.parts["train"][0][index], of.parts["train"][1][index], index, epoch)
        assert all(torch.equal(a, b) for a, b in zip(found, expected) if b is not None)


@pytest.mark.gpu
@EVERY
@pytest.mark.parametrize("keep", [0, 3])
def test_gpu_gives_the_same_pixels(options: dict[str, Any], keep: int) -> None:
    of = memory(**options, views=keep)
    index = torch.arange(COUNT)
    here = augmented(of, index, 1, 2)
    images, labels = of.parts["train"]
    there = of.augment(Batch(images.cuda(), labels.cuda(), index.cuda()), 1, 2)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there) if a is not None)


WRONG = {
    "pad": ({"pad": 10}, r"pad must be at least 0 and less than the image size, got 10"),
    "border": ({"pad": 1, "border": "reflct"}, r"unknown border 'reflct'; did you mean 'reflect'\?"),
    "erase": ({"erase": 1.5}, r"erase must be a fraction in \[0, 1\], got 1.5"),
    "area": ({"erase": 0.5, "erase_area": [0.5, 0.1]}, r"erase_area must be two fractions"),
    "scale": ({"scale": [0.5, 0.2]}, r"scale must be two fractions 0 < minimum <= maximum <= 1, got \[0.5, 0.2\]"),
    "no box": ({"scale": [0.0001, 0.0001]}, r"scale=\[0.0001, 0.0001\] gives no box that fits into images of 12x10"),
    "jitter": ({"jitter": 1.5}, r"jitter must lie in \[0, 1\], got 1.5"),
    "cutout": ({"cutout": 99}, r"cutout must lie between 0 and twice the image size, got 99"),
    "negative cutout": ({"cutout": -1}, r"cutout must lie"),
    "mixup": ({"mixup": -0.5}, r"mixup and cutmix must be finite numbers of at least 0, got -0.5"),
    "views": ({"views": -1}, r"views must be at least 1"),
    "transform": ({"transform": "randaugmet"}, r"unknown transform 'randaugmet'; did you mean 'randaugment'"),
    "arguments": ({"transform": "randomcrop"}, r"data.transform=randomcrop needs arguments"),
    "shape": (
        {"transform": {"_target_": "torchvision.transforms.v2.CenterCrop", "size": 4}},
        r"must keep uint8 images",
    ),
    "type": ({"transform": lambda image: image / 2}, r"must keep uint8 images"),
    "kind": ({"transform": 3}, r"data.transform must be a name"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_invalid_options_are_refused(case: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(InputError, match=case[1]) as caught:
        memory(**case[0])
    assert "\n" not in str(caught.value)
