"""Which of the files found train, validate and test, where the data set itself leaves it open."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.data.decode import File
from kd.data.listing import Listing
from kd.data.scaled import share_of
from kd.data.split import TEST_SPLIT, Subset, split, stratified
from kd.errors import InputError


class Roles(NamedTuple):
    """The files of each part, the shares that were chosen, and what there is to say."""

    train: list[File]
    val: list[File]
    test: list[File]
    shares: dict[str, float]
    notes: list[str]


def divided(found: Listing, val: float | str | None, test: float | str | None, subset: Subset, seed: int) -> Roles:
    """Draws a test part where there is none, then holds out a validation part where there is none.

    Args:
        found: the files; without any that train, the test part is alone.
        val: a share, ``test``, or else None.
        test: a share, or else None.
        subset: of the training files.
        seed: of what is drawn.

    Raises:
        InputError: shares out of range, or a class so small that nothing can be drawn.
    """
    if not found.train:
        return Roles([], [], found.test, {}, list(found.notes))
    train, tested, notes, shares = found.train, found.test, list(found.notes), {}
    if single := sum(len(members) == 1 for members in _by_class(train)):
        notes.append(f"classes with one training picture, which stays in training: {single}")
    if not isinstance(test, str) and (test is not None or not tested):
        notes += ["the part test is not used, as data.test is a share"] if tested else []
        share = shares["test"] = _share(share_of(len(train)) if test is None else test)
        rest, drawn = stratified(_labels(train), share, seed, TEST_SPLIT)
        if not len(drawn):
            raise InputError("there is no test part, and none can be drawn, as each class has one picture")
        train, tested = [train[i] for i in rest.tolist()], [train[i] for i in drawn.tolist()]
        notes.append(f"there is no test part: {share:g} of each class is drawn for it")
    drawing: Any = "test" if found.val else val
    if drawing is None:
        drawing = shares["val"] = share_of(len(train))
        notes.append(f"there is no validation part: {drawing:g} of each class is held out for it")
    parts = split(_labels(train), drawing, subset, seed, found.names)
    held_out = found.val or [train[i] for i in parts.held_out.tolist()] or tested
    kept = [train[i]._replace(label=label) for i, label in zip(parts.train.tolist(), parts.labels.tolist())]
    return Roles(kept, held_out, tested, shares, notes)


def _share(given: Any) -> float:
    if not isinstance(given, float) or not 0 < given < 1:
        raise InputError(f"test must be a share in (0, 1), or a folder or csv file, got {given!r}")
    return given


def _labels(files: list[File]) -> Tensor:
    return torch.tensor([file.label for file in files], dtype=torch.int64)


def _by_class(files: list[File]) -> list[list[File]]:
    found: dict[int, list[File]] = {}
    for file in files:
        found.setdefault(file.label, []).append(file)
    return list(found.values())
