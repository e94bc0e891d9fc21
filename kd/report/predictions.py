"""What ``predictions.safetensors`` shows: calibration, classes, likeness to the teacher, changed answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kd.errors import InputError
from kd.run_folder.layout import PREDICTIONS

BINS = 15
Array = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Side:
    """One network on the test set: its answers [N], its confidence in them [N], its Brier score, and the
    correlation [C, C] of its logits between classes."""

    answers: Ints
    confidence: Array
    brier: float
    correlation: Array


@dataclass(frozen=True)
class Predictions:
    """One run on the test set, in its order; ``teacher`` is None for a run without one."""

    labels: Ints
    student: Side
    teacher: Side | None


@dataclass(frozen=True)
class Reliability:
    """Of each bin of confidence: how many answers, their mean confidence and the share that is right."""

    count: Ints
    confidence: Array
    accuracy: Array

    @property
    def ece(self) -> float:
        """Mean distance of confidence and accuracy (Guo et al. 2017, arXiv:1706.04599)."""
        share = self.count / max(self.count.sum(), 1)
        return float((share * np.abs(self.confidence - self.accuracy)).sum())


def evidence(folder: Path, classes: int) -> Predictions | None:
    """What a run's predictions show; None if it kept none.

    Raises:
        InputError: a file that is damaged or does not fit the run.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    try:
        kept = load_file(path)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise InputError(f"{path.name} is damaged: {error}") from error
    labels = kept.get("labels", np.zeros(0))
    sides = {name: kept[name] for name in ("student", "teacher") if name in kept}
    whole = labels.ndim == 1 and labels.dtype.kind == "i" and len(labels) and "student" in sides
    fits = all(s.shape == (len(labels), classes) and s.dtype.kind == "f" for s in sides.values())
    if not whole or not fits or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{path.name} does not hold logits [N, {classes}] and their labels")
    if not all(np.isfinite(logits).all() for logits in sides.values()):
        raise InputError(f"{path.name} holds logits that are not finite")
    teacher = side(sides["teacher"], labels) if "teacher" in sides else None
    return Predictions(labels, side(sides["student"], labels), teacher)


def side(logits: Array, labels: Ints) -> Side:
    """Reduces logits [N, C] and labels [N]."""
    logits = logits.astype(np.float32)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    answers, confidence = logits.argmax(1), shares.max(1)
    return Side(answers, confidence, brier(shares, labels), correlation(logits))


def brier(shares: Array, labels: Ints) -> float:
    """Mean over images of the squared distance from probabilities [N, C] to the one-hot label."""
    right = shares[np.arange(len(labels)), labels].astype(np.float64)
    return float((np.square(shares, dtype=np.float64).sum(1) - 2 * right + 1).mean())


def correlation(logits: Array) -> Array:
    """Pearson correlation [C, C] between the classes' logits [N, C] over images; 0 where a logit never varies."""
    centred = logits.astype(np.float64) - logits.mean(0, dtype=np.float64)
    covariance = centred.T @ centred
    scale = np.sqrt(np.diag(covariance))
    scale[scale <= 1e-9 * max(float(scale.max(initial=0.0)), 1e-9)] = np.inf
    return covariance / np.outer(scale, scale)


def reliability(confidence: Array, right: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Answers sorted into equal bins of confidence, each open below: confidence [N], right [N]."""
    at = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    full = np.maximum(count, 1)
    return Reliability(
        count, np.bincount(at, confidence, minlength=bins) / full, np.bincount(at, right, minlength=bins) / full
    )


def pooled(members: Sequence[tuple[Side, Ints]]) -> Reliability:
    """The reliability over the answers of several runs."""
    confidence = np.concatenate([network.confidence for network, _ in members])
    right = np.concatenate([network.answers == labels for network, labels in members])
    return reliability(confidence, right)


def per_class(answers: Ints, labels: Ints, classes: int) -> Array:
    """The accuracy of each class [C]; not a number where the test set has none of it."""
    count = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[answers == labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        return right / count


@dataclass(frozen=True)
class Changed:
    """An image whose answer distilling changed: in how many of the seeds each student is right, and what they say."""

    index: int
    label: int
    ours: int
    base: int
    said_ours: int
    said_base: int
    said_teacher: int | None


def changed(
    ours: Sequence[Predictions], base: Sequence[Predictions], most: int = 8
) -> tuple[list[Changed], list[Changed]]:
    """The images that the method gets right in more seeds than scratch, and in fewer; the clearest first.

    Args:
        ours: the method's runs, one for each seed.
        base: the scratch runs of the same seeds, in the same order.
        most: how many of each.
    """
    labels = ours[0].labels
    right_ours = np.sum([run.student.answers == labels for run in ours], axis=0)
    right_base = np.sum([run.student.answers == labels for run in base], axis=0)
    surety = np.mean([np.where(run.student.answers == labels, 1, -1) * run.student.confidence for run in ours], axis=0)
    surety -= np.mean([np.where(run.student.answers == labels, 1, -1) * run.student.confidence for run in base], axis=0)
    more = right_ours - right_base
    order = np.lexsort((-np.abs(surety), -np.abs(more)))
    teacher = next((run.teacher for run in ours if run.teacher is not None), None)

    def told(index: int) -> Changed:
        said = teacher.answers[index] if teacher else None
        return Changed(
            index,
            int(labels[index]),
            int(right_ours[index]),
            int(right_base[index]),
            _usual(ours, index, wrong=more[index] < 0),
            _usual(base, index, wrong=more[index] > 0),
            None if said is None else int(said),
        )

    better = _varied([int(i) for i in order if more[i] > 0], labels, most)
    worse = _varied([int(i) for i in order if more[i] < 0], labels, most)
    return [told(at) for at in better], [told(at) for at in worse]


def _varied(positions: Sequence[int], labels: Ints, most: int) -> list[int]:
    """The first ``most``, but of one class no more than a quarter before the others have had their turn."""
    turn: dict[int, int] = {}
    turns = []
    for place, at in enumerate(positions):
        turn[int(labels[at])] = turn.get(int(labels[at]), -1) + 1
        turns.append((turn[int(labels[at])] // max(1, most // 4), place, at))
    return [at for _, _, at in sorted(turns)][:most]


def flips(ours: Predictions, base: Predictions) -> tuple[int, int]:
    """How many images one run gets right and the other wrong, and the other way round."""
    first, second = ours.student.answers == ours.labels, base.student.answers == base.labels
    return int((first & ~second).sum()), int((second & ~first).sum())


def _usual(runs: Sequence[Predictions], index: int, wrong: bool) -> int:
    """The commonest answer; the commonest wrong one where the runs are shown for being wrong."""
    said = [int(run.student.answers[index]) for run in runs]
    label = int(runs[0].labels[index])
    said = [answer for answer in said if answer != label] or said if wrong else said
    return max(sorted(set(said)), key=said.count)
