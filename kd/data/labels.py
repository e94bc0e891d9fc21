"""Converts labels in any common form to class numbers or probabilities; the rest is refused with a one-line error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.data.tensors import Note, as_tensor, dtype, span
from kd.errors import InputError, unknown

UNKNOWN = -1


def labels_of(value: Any, classes: int, where: str, note: Note, names: Sequence[str] = ()) -> Tensor:
    """Class numbers [B] as int64, -1 where unknown, or class probabilities [B, C] as float32.

    Args:
        value: integers [B] or [B, 1], class names, or [B, C] one-hot rows or probabilities.
        classes: number of classes.
        where: their name in messages, for example ``the training labels``.
        note: called with a message for each conversion.
        names: the class names, if known.

    Raises:
        InputError: anything else: numbers out of range, unknown names, rows that are not a distribution.
    """
    if (strings := strings_of(value)) is not None:
        return _numbered(strings, names, where)
    labels = as_tensor(value, where)
    if labels.ndim == 2 and labels.shape[1] == 1:
        note(f"{where} are {list(labels.shape)}: read as [B]")
        labels = labels[:, 0]
    if labels.ndim == 2 and classes == labels.shape[1]:
        return _rows(labels, where, note)
    if labels.ndim != 1:
        raise InputError(f"{where} are {list(labels.shape)}, not class numbers [B] or probabilities [B, {classes}]")
    if labels.is_floating_point() or labels.is_complex():
        if labels.is_complex() or not bool((labels == labels.round()).all()):
            raise InputError(f"{where} are {dtype(labels)} that are not integers; an unknown label is {UNKNOWN}")
        note(f"{where} are {dtype(labels)}: read as integers")
    labels = labels.long()
    _check_numbers(labels, classes, where)
    return labels


def strings_of(value: Any) -> list[str] | None:
    """Labels that are strings; None if they are not."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "USO":
        value = value.reshape(-1).tolist() if value.ndim < 3 else value
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, (str, bytes)) for each in value):
        return [each.decode() if isinstance(each, bytes) else each for each in value]
    return None


def _numbered(strings: list[str], names: Sequence[str], where: str) -> Tensor:
    if not names:
        raise InputError(f"{where} are names, for example {strings[0]!r}, but the classes are unknown: set `names`")
    numbers = {name: number for number, name in enumerate(names)}
    unknown_name = next((word for word in strings if word not in numbers), None)
    if unknown_name is not None:
        raise unknown(f"name among {where}", unknown_name, names)
    return torch.tensor([numbers[word] for word in strings], dtype=torch.int64)


def _rows(labels: Tensor, where: str, note: Note) -> Tensor:
    """Labels [B, C] as class numbers if one-hot, else as probabilities."""
    rows = labels.float()
    sums = rows.sum(1)
    binary = bool(((rows == 0) | (rows == 1)).all())
    if binary and bool((sums <= 1).all()):
        note(f"{where} are one-hot: converted to class numbers")
        return torch.where(sums > 0, rows.argmax(1), UNKNOWN)
    subject = f"{where} [B, {labels.shape[1]}]"
    if binary:
        raise InputError(
            f"{subject} are multi-hot: a row has {int(sums.max())} classes; expected one class per image, "
            "or probabilities that sum to 1"
        )
    if not bool((rows >= 0).all()) or not bool((((sums - 1).abs() < 1e-2) | (sums == 0)).all()):
        row_sum = float(sums[(sums - 1).abs().argmax()])
        raise InputError(f"{subject} are not class probabilities: a row sums to {row_sum:.4g}, or has negative values")
    return rows


def _check_numbers(labels: Tensor, classes: int, where: str) -> None:
    low, high = span(labels)
    invalid = low if low < UNKNOWN else high
    if low >= UNKNOWN and high < classes:
        return
    hint = f"; an unknown label is {UNKNOWN}" if low < UNKNOWN else ""
    hint = "; they seem to count from 1" if low == 1 and high == classes else hint
    raise InputError(
        f"{where} are out of range for {classes} classes: the data has the label {invalid:g}, expected 0 to "
        f"{classes - 1}{hint}"
    )
