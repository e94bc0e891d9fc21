"""Draws test and validation parts from the training files where the data set has none."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.data.decode import File
from kd.data.listing import Listing
from kd.data.option_defaults import share_of
from kd.data.split import TEST_SPLIT, Subset, split, stratified
from kd.errors import InputError


class Roles(NamedTuple):
    """The files of each part, the fractions that were drawn, and messages."""

    train: list[File]
    val: list[File]
    test: list[File]
    shares: dict[str, float]
    notes: list[str]


def divided(listing: Listing, val: float | str | None, test: float | str | None, subset: Subset, seed: int) -> Roles:
    """Draws a test part if there is none, then holds out a validation part if there is none.

    Args:
        listing: the files; without training files, there is only a test part.
        val: a fraction, ``test``, or None.
        test: a fraction, or None.
        subset: of the training files.
        seed: of the draws.

    Raises:
        InputError: fractions out of range, or no class with two images to draw from.
    """
    if not listing.train:
        return Roles([], [], listing.test, {}, list(listing.notes))
    train, test_files, notes, shares = listing.train, listing.test, list(listing.notes), {}
    if single := sum(len(members) == 1 for members in _by_class(train)):
        notes.append(f"classes with a single training image, which is not held out: {single}")
    if not isinstance(test, str) and (test is not None or not test_files):
        notes += ["the test part is not used, as data.test is a fraction"] if test_files else []
        share = shares["test"] = _share(share_of(len(train)) if test is None else test)
        remaining, drawn = stratified(_labels(train), share, seed, TEST_SPLIT)
        if not len(drawn):
            raise InputError("there is no test part, and none can be drawn, as each class has one image")
        train, test_files = [train[i] for i in remaining.tolist()], [train[i] for i in drawn.tolist()]
        notes.append(f"no test part: {share:g} of each class is drawn for testing")
    val_source: Any = "test" if listing.val else val
    if val_source is None:
        val_source = shares["val"] = share_of(len(train))
        notes.append(f"no validation part: {val_source:g} of each class is held out for validation")
    parts = split(_labels(train), val_source, subset, seed, listing.names)
    held_out = listing.val or [train[i] for i in parts.held_out.tolist()] or test_files
    train_files = [train[i]._replace(label=label) for i, label in zip(parts.train.tolist(), parts.labels.tolist())]
    return Roles(train_files, held_out, test_files, shares, notes)


def _share(value: Any) -> float:
    if not isinstance(value, float) or not 0 < value < 1:
        raise InputError(f"test must be a fraction in (0, 1), or a folder or csv file, got {value!r}")
    return value


def _labels(files: list[File]) -> Tensor:
    return torch.tensor([file.label for file in files], dtype=torch.int64)


def _by_class(files: list[File]) -> list[list[File]]:
    files_of: dict[int, list[File]] = {}
    for file in files:
        files_of.setdefault(file.label, []).append(file)
    return list(files_of.values())
