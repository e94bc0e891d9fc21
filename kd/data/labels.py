"""Labels as people have them, brought to class numbers or probabilities; what is neither is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.data.tensors import Note, as_tensor, dtype, span
from kd.errors import InputError, unknown

UNKNOWN = -1


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
    if (words := words_of(given)) is not None:
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
            raise InputError(
                f"{where} are {dtype(labels)} that are not whole, so no class numbers; a label that is not known is "
                f"{UNKNOWN}"
            )
        note(f"{where} are {dtype(labels)}: taken as whole numbers")
    labels = labels.long()
    _check_numbers(labels, classes, where)
    return labels


def words_of(given: Any) -> list[str] | None:
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
    strange = next((word for word in words if word not in numbers), None)
    if strange is not None:
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
    if not bool((rows >= 0).all()) or not bool((((sums - 1).abs() < 1e-2) | (sums == 0)).all()):
        odd = float(sums[(sums - 1).abs().argmax()])
        raise InputError(f"{shown} are no class probabilities: a row sums to {odd:.4g}, or holds numbers below 0")
    return rows


def _check_numbers(labels: Tensor, classes: int, where: str) -> None:
    low, high = span(labels)
    stray = low if low < UNKNOWN else high
    if low >= UNKNOWN and high < classes:
        return
    hint = f"; a label that is not known is {UNKNOWN}" if low < UNKNOWN else ""
    hint = "; they seem to be counted from 1" if low == 1 and high == classes else hint
    raise InputError(
        f"{where} leave the range of the {classes} classes: the data has the label {stray:g}, which is none of its "
        f"classes, counted from 0{hint}"
    )
