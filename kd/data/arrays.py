"""Converts a data set in memory, in any common form, to the form that kd uses."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.data.batch import Arrays
from kd.data.images import images_of
from kd.data.labels import labels_of, strings_of
from kd.data.tensors import as_tensor, kind
from kd.errors import InputError

log = logging.getLogger(__name__)


def adapted(arrays: Any) -> Arrays:
    """A data set in memory as uint8 images [N, C, H, W] and int64 labels [N], with the class names.

    Raises:
        InputError: images or labels that cannot be converted, or inconsistent parts.
    """
    if not isinstance(arrays, Arrays):
        expected = "kd.Arrays(train=(images, labels), test=(images, labels), names=(...)), or a LightningDataModule"
        raise InputError(f"a data set must be {expected}, not {kind(arrays)}")
    parts = {"training": arrays.train, "test": arrays.test}
    for part, pair in parts.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"the {part} set must be (images, labels), got {kind(pair)}")
        if not len(pair[0]) or len(pair[0]) != len(pair[1]):
            raise InputError(f"the {part} set has {len(pair[0])} images and {len(pair[1])} labels")
    names = class_names(arrays.names) or _names([labels for _, labels in parts.values()])
    images = {part: _bytes(pair[0], f"the {part} images") for part, pair in parts.items()}
    shapes = [list(each.shape[1:]) for each in images.values()]
    if shapes[0] != shapes[1]:
        raise InputError(f"training and test images differ in shape: {shapes[0]} and {shapes[1]}")
    labels = {part: _class_numbers(pair[1], names, part) for part, pair in parts.items()}
    if missing := int((labels["test"] < 0).sum()):
        raise InputError(f"the test set has {missing} images without a label (-1): use a test set with labels")
    present = set(labels["training"].unique().tolist())
    if absent := [name for number, name in enumerate(names) if number not in present]:
        log.warning("data: %d of %d classes have no training image, first %r", len(absent), len(names), absent[0])
    for key, numbers in (("mean", arrays.mean), ("std", arrays.std)):
        if numbers is not None and len(numbers) != shapes[0][0]:
            raise InputError(f"{key} has {len(numbers)} numbers for images of {shapes[0][0]} channels")
    train, test = ((images[part], labels[part]) for part in parts)
    return replace(arrays, train=train, test=test, names=names)


def class_names(names: Any) -> tuple[str, ...]:
    """The class names as strings, in the order of their numbers.

    They may be a mapping from names to numbers, or from numbers to names.

    Raises:
        InputError: names without an order, or duplicates.
    """
    if isinstance(names, Mapping):
        pairs = [(key, value) if _whole(key) else (value, key) for key, value in names.items()]
        if sorted(number for number, _ in pairs if _whole(number)) != list(range(len(names))):
            raise InputError(f"names must give each class a number from 0 to {len(names) - 1}, got {dict(names)}")
        names = [name for _, name in sorted(pairs, key=lambda pair: pair[0])]
    if isinstance(names, (str, set, frozenset)):
        raise InputError(f"names must be an ordered list of the class names, got {kind(names)}")
    strings = tuple(str(name) for name in (() if names is None else names))
    if twice := next((name for number, name in enumerate(strings) if name in strings[:number]), None):
        raise InputError(f"names has {twice!r} twice; class names must be unique")
    return strings


def _whole(number: Any) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def _names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Names for classes without names: the sorted distinct labels (strings), or numbers."""
    strings = [strings_of(each) for each in labels]
    if any(each is not None for each in strings):
        if any(each is None for each in strings):
            raise InputError("the labels of one part are names, those of the other numbers: set `names`, in order")
        return tuple(sorted({word for each in strings for word in each or ()}))
    tensors = [as_tensor(each, "the labels") for each in labels]
    wide = [each.shape[1] for each in tensors if each.ndim == 2 and each.shape[1] > 1]
    largest = [int(each[each.isfinite()].max()) for each in tensors if bool(each.isfinite().any())]
    count = max(wide) if wide else 1 + max(largest, default=0)
    return tuple(map(str, range(count)))


def _bytes(values: Any, where: str) -> Tensor:
    images = images_of(values, where, log.info)
    if not images.is_floating_point():
        if int(images.max()) == 1:
            log.warning("%s hold only 0 and 1 out of 0..255; if 1 is white, pass bool or float", where)
        return images
    scaled = images.clamp(0, 1) * 255
    error = float((scaled - scaled.round()).abs().max())
    log.info("%s are float in [0, 1]: stored as uint8%s", where, "" if error < 1e-3 else ", rounded to 1/255")
    return scaled.round().to(torch.uint8)


def _class_numbers(values: Any, names: Sequence[str], part: str) -> Tensor:
    labels = labels_of(values, len(names), f"the {part} labels", log.info, names)
    if labels.ndim != 1:
        raise InputError(f"the {part} labels are probabilities; data in memory needs one class number per image")
    return labels
