"""Images and labels as people have them, brought to the form that kd computes with.

What is clear is converted, and said in one line; what could mean two things is refused in one line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.data.batch import Arrays
from kd.errors import InputError, unknown

log = logging.getLogger(__name__)

Note = Callable[[str], None]

CHANNELS = (1, 3, 4)
SLACK = 0.1  # by how much interpolated pixels may lie outside of [0, 1]
UNKNOWN = -1


def as_tensor(given: Any, where: str) -> Tensor:
    """A tensor of what may be a tensor, an array, numbers, or a list of any of them or of Pillow images.

    Raises:
        InputError: what is none of these, or things of several shapes.
    """
    if isinstance(given, Tensor):
        return given
    try:
        if isinstance(given, (list, tuple)) and given and isinstance(given[0], Tensor):
            return torch.stack(list(given))
        array = np.asarray(given) if not isinstance(given, (list, tuple)) else np.stack([np.asarray(g) for g in given])
        array = array.astype(np.int64) if array.dtype in (np.uint16, np.uint32, np.uint64) else array
        return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, TypeError, RuntimeError) as error:
        shapes = {str(list(np.shape(each))) for each in given} if isinstance(given, (list, tuple)) else set()
        if len(shapes) > 1:
            first = " and ".join(sorted(shapes)[:2])
            raise InputError(f"{where} are of several shapes, {first}: bring them to one, by resizing say") from error
        raise InputError(f"{where} are {_kind(given)}, not a tensor or an array of numbers") from error


def images_of(
    given: Any,
    where: str,
    note: Note,
    shape: Sequence[int] | None = None,
    ranged: bool = True,
    finite: bool = True,
) -> Tensor:
    """Images [B, C, H, W] as uint8, or as float32 in [0, 1].

    Args:
        given: a tensor, an array or a list of images: [B, C, H, W], [B, H, W, C] or [B, H, W]; booleans, whole numbers
            in 0..255, or floats in [0, 1].
        where: what they are called in messages, ``the training images``.
        note: is told what was converted.
        shape: [C, H, W], where it is known.
        ranged: whether the range of floats is looked at.
        finite: whether that refuses what is not a number as well.

    Raises:
        InputError: anything else.
    """
    images = _arranged(as_tensor(given, where), where, note, shape)
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        note(f"{where} are true or false: taken as white and black")
        return images.to(torch.uint8) * 255
    if images.is_complex():
        raise InputError(f"{where} are complex numbers; kd takes uint8, or float in [0, 1]")
    if not images.is_floating_point():
        low, high = _range(images)
        if low < 0 or high > 255:
            raise InputError(f"{where} are {_dtype(images)} from {low:g} to {high:g}; kd takes 0 to 255")
        note(f"{where} are {_dtype(images)} in 0..255: taken as uint8")
        return images.to(torch.uint8)
    if ranged:
        _check_range(images, where, finite)
    return images if images.dtype == torch.float64 else images.float()


def _arranged(images: Tensor, where: str, note: Note, shape: Sequence[int] | None) -> Tensor:
    """With channels second, where it is clear which dimension they are."""
    found = list(images.shape)
    if images.ndim == 3 and shape is not None and shape[0] != 1:
        raise InputError(f"{where} are {found}, not [B, C, H, W]; a single image needs a first dimension: images[None]")
    if images.ndim == 3:
        note(f"{where} are {found}: taken as [B, H, W] of one channel")
        return images.unsqueeze(1)
    if images.ndim != 4:
        raise InputError(f"{where} are {found}, not [B, C, H, W]")
    channels = CHANNELS if shape is None else (shape[0],)
    last = images.shape[3] in channels and (shape is not None or images.shape[3] < images.shape[1])
    if images.shape[1] not in channels and last:
        note(f"{where} are {found}: taken as [B, H, W, C]")
        return images.permute(0, 3, 1, 2).contiguous()
    if shape is not None and images.shape[1] != shape[0]:
        raise InputError(f"{where} are {found}, but their shape [C, H, W] was said to be {list(shape)}")
    return images


def _check_range(images: Tensor, where: str, finite: bool) -> None:
    low, high = _range(images)
    if finite and not -math.inf < low <= high < math.inf:
        raise InputError(f"{where} hold numbers that are not finite")
    if low < -SLACK:
        raise InputError(
            f"{where} are float from {low:.3g} to {high:.3g}, as if normalised already; kd takes uint8, or float in "
            "[0, 1], and normalises in front of each network: leave the normalisation out, and give its mean and std "
            "to the data module as `mean` and `std`"
        )
    if high > 1 + SLACK:
        raise InputError(
            f"{where} are float from {low:.3g} to {high:.3g}; kd takes uint8, or float in [0, 1]: divide them by "
            "their largest possible value (255 for bytes), or give bytes as uint8"
        )


def _range(numbers: Tensor) -> tuple[float, float]:
    if not numbers.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(numbers)
    return float(low), float(high)


def labels_of(given: Any, classes: int, where: str, note: Note, names: Sequence[str] = ()) -> Tensor:
    """Class numbers [B] as int64, -1 where not known, or class probabilities [B, C] as float32.

    Args:
        given: numbers [B] or [B, 1] that are whole, names of classes, or [B, C] one-hot rows or probabilities.
        classes: how many there are.
        where: what they are called in messages, ``the training labels``.
        note: is told what was converted.
        names: the classes' names, where they are known.

    Raises:
        InputError: anything else: numbers out of range, unknown names, rows that are no distribution.
    """
    if (words := _words(given)) is not None:
        return _numbered(words, names, where)
    labels = as_tensor(given, where)
    if labels.ndim == 2 and labels.shape[1] == 1:
        note(f"{where} are {list(labels.shape)}: taken as [B]")
        labels = labels[:, 0]
    if labels.ndim == 2 and classes == labels.shape[1]:
        return _rows(labels, where, note)
    if labels.ndim != 1:
        raise InputError(f"{where} are {list(labels.shape)}, not class numbers [B] or probabilities [B, {classes}]")
    if labels.is_floating_point() or labels.is_complex():
        if labels.is_complex() or not bool((labels == labels.round()).all()):
            raise InputError(f"{where} are {_dtype(labels)} that are not whole, so no class numbers")
        note(f"{where} are {_dtype(labels)}: taken as whole numbers")
    labels = labels.long()
    _check_numbers(labels, classes, where)
    return labels


def _words(given: Any) -> list[str] | None:
    """Labels that are strings; None if they are not."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "USO":
        given = given.reshape(-1).tolist() if given.ndim < 3 else given
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, (str, bytes)) for each in given):
        return [each.decode() if isinstance(each, bytes) else each for each in given]
    return None


def _numbered(words: list[str], names: Sequence[str], where: str) -> Tensor:
    if not names:
        raise InputError(f"{where} are names, {words[0]!r} say, but nothing says which classes there are: give `names`")
    numbers = {name: number for number, name in enumerate(names)}
    if strange := next((word for word in words if word not in numbers), None):
        raise unknown(f"name among {where}", strange, names)
    return torch.tensor([numbers[word] for word in words], dtype=torch.int64)


def _rows(labels: Tensor, where: str, note: Note) -> Tensor:
    """Labels [B, C] as class numbers if one-hot, else as probabilities."""
    rows = labels.float()
    sums = rows.sum(1)
    whole = bool(((rows == 0) | (rows == 1)).all())
    if whole and bool((sums <= 1).all()):
        note(f"{where} are one-hot: taken as class numbers")
        return torch.where(sums > 0, rows.argmax(1), UNKNOWN)
    shown = f"{where} [B, {labels.shape[1]}]"
    if whole:
        raise InputError(
            f"{shown} are multi-hot: a row has {int(sums.max())} classes. kd gives each image one class, "
            "or probabilities that sum to 1"
        )
    if not bool((rows >= 0).all()) or not bool((((sums - 1).abs() < 1e-3) | (sums == 0)).all()):
        odd = float(sums[(sums - 1).abs().argmax()])
        raise InputError(f"{shown} are no class probabilities: a row sums to {odd:.4g}, or holds numbers below 0")
    return rows


def _check_numbers(labels: Tensor, classes: int, where: str) -> None:
    low, high = _range(labels)
    stray = low if low < UNKNOWN else high
    if low >= UNKNOWN and high < classes:
        return
    hint = f"; a label that is not known is {UNKNOWN}" if low < UNKNOWN else ""
    hint = "; they seem to be counted from 1" if low == 1 and high == classes else hint
    raise InputError(
        f"{where} leave the range of the {classes} classes: the data has the label {stray:g}, which is none of its "
        f"classes, counted from 0{hint}"
    )


def adapted(arrays: Any) -> Arrays:
    """A data set in memory as uint8 images [N, C, H, W] and int64 labels [N], with the classes' names.

    Raises:
        InputError: images or labels that cannot be taken so, or parts that do not fit together.
    """
    if not isinstance(arrays, Arrays):
        wanted = "kd.Arrays(train=(images, labels), test=(images, labels), names=(...)), or a LightningDataModule"
        raise InputError(f"a data set is {wanted}, not {_kind(arrays)}")
    parts = {"training": arrays.train, "test": arrays.test}
    for part, pair in parts.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"the {part} set must be (images, labels), got {_kind(pair)}")
        if not len(pair[0]) or len(pair[0]) != len(pair[1]):
            raise InputError(f"the {part} set has {len(pair[0])} images and {len(pair[1])} labels")
    names = named(arrays.names) or _names([labels for _, labels in parts.values()])
    images = {part: _bytes(pair[0], f"the {part} images") for part, pair in parts.items()}
    shapes = [list(each.shape[1:]) for each in images.values()]
    if shapes[0] != shapes[1]:
        raise InputError(f"training and test images differ in shape: {shapes[0]} and {shapes[1]}")
    labels = {part: _class_numbers(pair[1], names, part) for part, pair in parts.items()}
    if missing := int((labels["test"] < 0).sum()):
        raise InputError(f"the test set has {missing} images without a label (-1): take a part that has labels")
    for key, numbers in (("mean", arrays.mean), ("std", arrays.std)):
        if numbers is not None and len(numbers) != shapes[0][0]:
            raise InputError(f"{key} has {len(numbers)} numbers for images of {shapes[0][0]} channels")
    train, test = ((images[part], labels[part]) for part in parts)
    return replace(arrays, train=train, test=test, names=names)


def named(names: Sequence[Any] | None) -> tuple[str, ...]:
    """The classes' names as strings; refuses one that comes twice, which would stand for two classes."""
    words = tuple(str(name) for name in (() if names is None else names))
    if twice := next((name for number, name in enumerate(words) if name in words[:number]), None):
        raise InputError(f"names has {twice!r} twice; each class needs a name of its own")
    return words


def _names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Names for classes that nobody named: the labels' own words in their order, or numbers."""
    words = [_words(each) for each in labels]
    if any(each is not None for each in words):
        return tuple(sorted({word for each in words for word in each or ()}))
    tensors = [as_tensor(each, "the labels") for each in labels]
    wide = [each.shape[1] for each in tensors if each.ndim == 2 and each.shape[1] > 1]
    count = max(wide) if wide else 1 + max(int(each.max()) for each in tensors)
    return tuple(map(str, range(count)))


def _bytes(given: Any, where: str) -> Tensor:
    images = images_of(given, where, log.info)
    if not images.is_floating_point():
        if int(images.max()) == 1:
            log.warning("%s hold 0 and 1 only, of 0..255; if 1 is white, give them as bool or float", where)
        return images
    scaled = images.clamp(0, 1) * 255
    error = float((scaled - scaled.round()).abs().max())
    log.info("%s are float in [0, 1]: kept as bytes%s", where, "" if error < 1e-3 else ", rounded to 1/255")
    return scaled.round().to(torch.uint8)


def _class_numbers(given: Any, names: Sequence[str], part: str) -> Tensor:
    labels = labels_of(given, len(names), f"the {part} labels", log.info, names)
    if labels.ndim != 1:
        raise InputError(f"the {part} labels are probabilities; data in memory takes one class number an image")
    return labels


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(given: Any) -> str:
    if isinstance(given, (Tensor, np.ndarray)):
        return f"{type(given).__name__} of {given.dtype}"
    if isinstance(given, (list, tuple)) and given:
        return f"a {type(given).__name__} of {type(given[0]).__name__}"
    return f"a {type(given).__name__}"
