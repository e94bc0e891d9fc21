"""Which training images serve for what: the validation split, labelled subsets, and the colour statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd.data.augment import permutation
from kd.errors import InputError

UNLABELLED = -1
VAL_SPLIT, SUBSET, TEST_SPLIT = 0, 1, 2  # what is drawn, each apart from the others


class Split(NamedTuple):
    """Positions among the training images given: of those that train, with their labels, and of those held out."""

    train: Tensor
    labels: Tensor
    held_out: Tensor


class Subset(NamedTuple):
    """How many of the training images keep their label.

    ``fraction`` of each class, at least one image, or ``per_class`` images of each class (0 for all). The others leave
    the training set, or stay in it with the label -1 if ``unlabelled``. A larger subset contains a smaller one.
    """

    fraction: float = 1.0
    per_class: int = 0
    unlabelled: bool = False

    def check(self) -> None:
        """Refuses numbers out of range, and options that say nothing together, by an InputError."""
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction must be a share in (0, 1], got {self.fraction}")
        if self.per_class < 0:
            raise InputError(f"per_class must be at least 1, or 0 for all images, got {self.per_class}")
        if self.fraction < 1 and self.per_class:
            raise InputError(f"give fraction or per_class, not both: {self.fraction} and {self.per_class}")
        if self.unlabelled and self.fraction == 1 and not self.per_class:
            raise InputError("unlabelled=true keeps the rest of a subset: give fraction or per_class with it")

    def chosen(self, labels: Tensor, seed: int, names: Sequence[str]) -> Tensor:
        """Whether each sample is in the subset [N], for class numbers [N]; drawn by class.

        Raises:
            InputError: a class has fewer than ``per_class`` images.
        """
        if self.fraction == 1 and not self.per_class:
            return torch.ones(len(labels), dtype=torch.bool)
        order = permutation(len(labels), seed, epoch=SUBSET)
        kept = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels[labels >= 0].unique().tolist():
            members = order[labels[order] == label]
            if self.per_class > len(members):
                raise InputError(
                    f"per_class={self.per_class} is more than the {len(members)} training images of {names[label]!r}"
                )
            kept[members[: self.per_class or max(1, round(self.fraction * len(members)))]] = True
        return kept


def split(labels: Tensor, val: float | str, subset: Subset, seed: int, names: Sequence[str]) -> Split:
    """Holds out a share ``val`` of each class (nothing for ``"test"``), then takes the subset of what is left.

    ``labels`` [N] are class numbers, -1 where unknown: such images are never held out, and stay.

    Raises:
        InputError: numbers out of range.
    """
    if not (val == "test" or (isinstance(val, float) and 0 < val < 1)):
        raise InputError(f"val must be a share in (0, 1) or 'test', got {val!r}")
    subset.check()
    train, held_out = torch.arange(len(labels)), torch.arange(0)
    if isinstance(val, float):
        train, held_out = stratified(labels, val, seed)
        if not len(held_out):
            raise InputError(f"val={val} holds out no image, as each class has one to train on: give val=test")
    known = labels[train]
    kept = subset.chosen(known, seed, names)
    if subset.unlabelled:
        return Split(train, torch.where(kept, known, UNLABELLED), held_out)
    kept |= known < 0
    return Split(train[kept], known[kept], held_out)


def stratified(labels: Tensor, share: float, seed: int, draw: int = VAL_SPLIT) -> tuple[Tensor, Tensor]:
    """Positions of the rest and of a share of each class, both in ascending order.

    At least one image of each class is in the share, and at least one in the rest, where a class's only one stays.
    """
    order = permutation(len(labels), seed, epoch=draw)
    rest = torch.ones(len(labels), dtype=torch.bool)
    for label in labels[labels >= 0].unique():
        members = order[labels[order] == label]
        rest[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = False
    return rest.nonzero().flatten(), (~rest).nonzero().flatten()


def statistics(images: Tensor, positions: Tensor, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the [0, 1] scale, over at most so many images, evenly spread."""
    pixels = images[positions[:: -(-len(positions) // most)]].double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    return tuple(round(m, 4) for m in mean.tolist()), tuple(max(round(s, 4), 1e-3) for s in std.tolist())
