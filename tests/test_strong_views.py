"""Resized crop and jitter of whole batches, compared with torchvision's for single images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from kd import Arrays, Memory
from kd.data.color_jitter import Jitter
from kd.data.erasing import crop_boxes
from kd.data.resized_crop import ResizedCrop, enlarged

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 12, 10), (2, 7, 9)]


def noise(count: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, *shape), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_box_is_enlarged_as_torchvision_does(shape: tuple[int, int, int]) -> None:
    sizes = torch.tensor(crop_boxes(shape, [0.1, 1.0]))[::37]
    images = noise(len(sizes), shape)
    height, width = sizes.unbind(1)
    top, left = (shape[1] - height) // 2, shape[2] - width
    found = enlarged(images, top, left, height, width)
    for image, mine, *box in zip(images, found, top, left, height, width):
        expected = V.resized_crop(image.double(), *map(int, box), size=list(shape[1:]), antialias=True)
        assert (mine.double() - expected).abs().max() <= 0.5 + 1e-9  # rounded once, to the nearest


def test_crop_of_the_whole_image_is_identity() -> None:
    images = noise(5, (3, 8, 6))
    zero = torch.zeros(5, dtype=torch.long)
    assert torch.equal(enlarged(images, zero, zero, zero + 8, zero + 6), images)


def test_boxes_are_spread_as_torchvisions() -> None:
    """Their height, width and place, of many draws: the same means and spreads to their standard errors."""
    shape, scale, count = (1, 28, 28), [0.25, 1.0], 20_000
    recipe = v2.RandomResizedCrop(28, scale=tuple(scale), antialias=True)
    torch.manual_seed(0)
    theirs = torch.tensor([list(recipe.make_params([torch.zeros(shape)]).values()) for _ in range(count)])
    table = torch.tensor(crop_boxes(shape, scale)).double()
    found = theirs[:, 2:].double()
    for mine, other in zip(table.unbind(1), found.unbind(1)):
        error = 4 * other.std() / count**0.5 + 0.02  # the table's steps
        assert abs(mine.mean() - other.mean()) < error
        assert abs(mine.std() - other.std()) < error


def test_places_of_boxes_are_uniform() -> None:
    """Of a ramp the middle pixel tells where the box lay."""
    of = ResizedCrop((1, 16, 16), [0.25, 0.25])
    ramp = (torch.arange(16) * 10).to(torch.uint8).expand(4000, 1, 16, 16)
    middle = of(ramp, torch.arange(4000), 0, 0)[:, 0, 8, 8].double()
    assert abs(middle.mean() - 80) < 6
    assert middle.min() < 45
    assert middle.max() > 105


ADJUST = [V.adjust_brightness, V.adjust_contrast, V.adjust_saturation]


@pytest.mark.parametrize("shape", [(1, 14, 14), (3, 14, 14)], ids=["grey", "colour"])
def test_jitter_is_torchvisions_one_after_the_other(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd.data import color_jitter as jitter

    images = noise(60, shape)
    bits = torch.randint(0, 2**32, (3, 60), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(jitter, "hashed", lambda *_: bits)
    found = Jitter(0.5)(images, torch.arange(60), 0, 0)
    factors = (((bits * 257) >> 32) + 128) / 256
    assert factors.min() >= 0.5
    assert factors.max() <= 1.5
    for position, image in enumerate(images):
        for adjust, factor in zip(ADJUST, factors[:, position].tolist()):
            image = adjust(image, factor)
        assert (found[position].int() - image.int()).abs().max() <= 4  # torchvision cuts where this one rounds


def test_jitter_of_nothing_changes_nothing() -> None:
    images = noise(9, (3, 5, 5))
    assert torch.equal(Jitter(0.0)(images, torch.arange(9), 0, 0), images)


def test_both_are_part_of_the_augmentation_description() -> None:
    """So that teacher outputs kept for other views are not taken; without them nothing is said, as before they were."""
    images, labels = noise(8, (1, 8, 8)), torch.arange(8) % 2
    data = Arrays((images, labels), (images, labels), ("a", "b"))
    about = [
        Memory(data, 4, val="test", views=2, **options).augmentation()
        for options in ({}, {"scale": [0.5, 1.0]}, {"jitter": 0.5}, {"jitter": 0.4})
    ]  # type: ignore[arg-type]
    assert len({str(one) for one in about}) == 4
    assert "scale" not in about[0]
    assert "jitter" not in about[0]
