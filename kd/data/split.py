"""The validation split, labelled subsets, and the colour statistics of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd.data.augment import permutation
from kd.errors import InputError

UNLABELLED = -1
VAL_SPLIT, SUBSET, TEST_SPLIT = 0, 1, 2  # independent draws


class Split(NamedTuple):
    """Positions of the images to train on, with their labels, and of those held out."""

    train: Tensor
    labels: Tensor
    held_out: Tensor


class Subset(NamedTuple):
    """Number of training images that keep their label.

    ``fraction`` of each class, at least one image, or ``per_class`` images of each class (0 for all). The others are
    removed from the training set, or stay with the label -1 if ``unlabelled``. A larger subset contains a smaller one.
    """

    fraction: float = 1.0
    per_class: int = 0
    unlabelled: bool = False

    def check(self) -> None:
        """Raises InputError for numbers out of range and for inconsistent options."""
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction must lie in (0, 1], got {self.fraction}")
        if self.per_class < 0:
            raise InputError(f"per_class must be at least 1, or 0 for all images, got {self.per_class}")
        if self.fraction < 1 and self.per_class:
            raise InputError(f"give fraction or per_class, not both: {self.fraction} and {self.per_class}")
        if self.unlabelled and self.fraction == 1 and not self.per_class:
            raise InputError("unlabelled=true keeps the images outside a subset: set fraction or per_class with it")

    def chosen(self, labels: Tensor, seed: int, names: Sequence[str]) -> Tensor:
        """Whether each sample is in the subset [N], for class numbers [N]; drawn by class.

        Raises:
            InputError: a class has fewer than ``per_class`` images.
        """
        if self.fraction == 1 and not self.per_class:
            return torch.ones(len(labels), dtype=torch.bool)
        order = permutation(len(labels), seed, epoch=SUBSET)
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels[labels >= 0].unique().tolist():
            members = order[labels[order] == label]
            if self.per_class > len(members):
                raise InputError(
                    f"per_class={self.per_class} exceeds the {len(members)} training images of {names[label]!r}"
                )
            chosen[members[: self.per_class or max(1, round(self.fraction * len(members)))]] = True
        return chosen


def split(labels: Tensor, val: float | str, subset: Subset, seed: int, names: Sequence[str]) -> Split:
    """Holds out a fraction ``val`` of each class (nothing for ``"test"``), then takes the subset of the others.

    ``labels`` [N] are class numbers, -1 where unknown: such images are never held out or removed.

    Raises:
        InputError: numbers out of range.
    """
    if not (val == "test" or (isinstance(val, float) and 0 < val < 1)):
        raise InputError(f"val must be a fraction in (0, 1) or 'test', got {val!r}")
    subset.check()
    train, held_out = torch.arange(len(labels)), torch.arange(0)
    if isinstance(val, float):
        train, held_out = stratified(labels, val, seed)
        if not len(held_out):
            raise InputError(f"val={val} holds out no image, as each class has only one training image: set val=test")
    train_labels = labels[train]
    chosen = subset.chosen(train_labels, seed, names)
    if subset.unlabelled:
        return Split(train, torch.where(chosen, train_labels, UNLABELLED), held_out)
    chosen |= train_labels < 0
    return Split(train[chosen], train_labels[chosen], held_out)


def stratified(labels: Tensor, share: float, seed: int, draw: int = VAL_SPLIT) -> tuple[Tensor, Tensor]:
    """Positions of the remaining samples and of a fraction ``share`` of each class, both in ascending order.

    At least one image of each class is drawn and at least one remains; a class with a single image keeps it.
    """
    order = permutation(len(labels), seed, epoch=draw)
    remaining = torch.ones(len(labels), dtype=torch.bool)
    for label in labels[labels >= 0].unique():
        members = order[labels[order] == label]
        remaining[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = False
    return remaining.nonzero().flatten(), (~remaining).nonzero().flatten()


def statistics(images: Tensor, positions: Tensor, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the [0, 1] scale, over at most so many images, evenly spread."""
    pixels = images[positions[:: -(-len(positions) // most)]].double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    return tuple(round(m, 4) for m in mean.tolist()), tuple(max(round(s, 4), 1e-3) for s in std.tolist())
