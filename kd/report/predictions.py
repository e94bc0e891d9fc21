"""Reads ``predictions.safetensors``: calibration, accuracy by class, logit correlations, changed predictions."""

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
class Outputs:
    """One network on the test set: predicted classes [N], their confidence [N], the Brier score, and the correlation
    [C, C] between the logits of classes."""

    predicted: Ints
    confidence: Array
    brier: float
    correlation: Array


@dataclass(frozen=True)
class Predictions:
    """The predictions of one run for the test set, in its order; ``teacher`` is None without a teacher."""

    labels: Ints
    student: Outputs
    teacher: Outputs | None


@dataclass(frozen=True)
class Reliability:
    """For each confidence bin the number of predictions, their mean confidence and their accuracy."""

    count: Ints
    confidence: Array
    accuracy: Array

    @property
    def ece(self) -> float:
        """Mean absolute difference of confidence and accuracy (Guo et al. 2017, arXiv:1706.04599)."""
        share = self.count / max(self.count.sum(), 1)
        return float((share * np.abs(self.confidence - self.accuracy)).sum())


def read_predictions(folder: Path, classes: int) -> Predictions | None:
    """Reads and reduces a run's predictions; None if it has none.

    Raises:
        InputError: a file that is damaged or does not fit the run.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise InputError(f"{path.name} is damaged: {error}") from error
    labels = tensors.get("labels", np.zeros(0))
    networks = {name: tensors[name] for name in ("student", "teacher") if name in tensors}
    complete = labels.ndim == 1 and labels.dtype.kind == "i" and len(labels) and "student" in networks
    fits = all(n.shape == (len(labels), classes) and n.dtype.kind == "f" for n in networks.values())
    if not complete or not fits or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{path.name} does not contain logits [N, {classes}] and labels [N]")
    if not all(np.isfinite(logits).all() for logits in networks.values()):
        raise InputError(f"{path.name} contains logits that are not finite")
    teacher = outputs(networks["teacher"], labels) if "teacher" in networks else None
    return Predictions(labels, outputs(networks["student"], labels), teacher)


def outputs(logits: Array, labels: Ints) -> Outputs:
    """Reduces logits [N, C] and labels [N]."""
    logits = logits.astype(np.float32)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return Outputs(logits.argmax(1), probabilities.max(1), brier(probabilities, labels), correlation(logits))


def brier(probabilities: Array, labels: Ints) -> float:
    """Mean over images of the squared distance from probabilities [N, C] to the one-hot label."""
    correct = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float((np.square(probabilities, dtype=np.float64).sum(1) - 2 * correct + 1).mean())


def correlation(logits: Array) -> Array:
    """Pearson correlation [C, C] between the classes' logits [N, C] over images; 0 for a constant logit."""
    centred = logits.astype(np.float64) - logits.mean(0, dtype=np.float64)
    covariance = centred.T @ centred
    scale = np.sqrt(np.diag(covariance))
    scale[scale <= 1e-9 * max(float(scale.max(initial=0.0)), 1e-9)] = np.inf
    return covariance / np.outer(scale, scale)


def reliability(confidence: Array, correct: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Sorts predictions with ``confidence`` [N] and ``correct`` [N] into equal bins, each open on the left."""
    at = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    full = np.maximum(count, 1)
    return Reliability(
        count, np.bincount(at, confidence, minlength=bins) / full, np.bincount(at, correct, minlength=bins) / full
    )


def pooled(members: Sequence[tuple[Outputs, Ints]]) -> Reliability:
    """The reliability over the predictions of several runs."""
    confidence = np.concatenate([network.confidence for network, _ in members])
    correct = np.concatenate([network.predicted == labels for network, labels in members])
    return reliability(confidence, correct)


def per_class(predicted: Ints, labels: Ints, classes: int) -> Array:
    """The accuracy of each class [C]; NaN for a class without test images."""
    count = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels[predicted == labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        return correct / count


@dataclass(frozen=True)
class ChangedImage:
    """An image whose prediction changed: the number of seeds with a correct prediction, and the predicted classes."""

    index: int
    label: int
    student_correct: int
    scratch_correct: int
    student_class: int
    scratch_class: int
    teacher_class: int | None


def changed(
    ours: Sequence[Predictions], base: Sequence[Predictions], most: int = 8
) -> tuple[list[ChangedImage], list[ChangedImage]]:
    """The images that the method predicts correctly in more seeds than scratch, and in fewer; largest change first.

    Args:
        ours: the method's runs, one per seed.
        base: the scratch runs of the same seeds, in the same order.
        most: the number of images of each kind.
    """
    labels = ours[0].labels
    ours_correct, base_correct = (
        np.sum([run.student.predicted == labels for run in runs], axis=0) for runs in (ours, base)
    )
    margin = _signed_confidence(ours) - _signed_confidence(base)
    more = ours_correct - base_correct
    order = np.lexsort((-np.abs(margin), -np.abs(more)))
    teacher = next((run.teacher for run in ours if run.teacher is not None), None)

    def image(index: int) -> ChangedImage:
        return ChangedImage(
            index,
            int(labels[index]),
            int(ours_correct[index]),
            int(base_correct[index]),
            _mode(ours, index, wrong=more[index] < 0),
            _mode(base, index, wrong=more[index] > 0),
            None if teacher is None else int(teacher.predicted[index]),
        )

    better = _varied([int(i) for i in order if more[i] > 0], labels, most)
    worse = _varied([int(i) for i in order if more[i] < 0], labels, most)
    return [image(index) for index in better], [image(index) for index in worse]


def _signed_confidence(runs: Sequence[Predictions]) -> Array:
    """Mean confidence [N] over runs, negative where a prediction is wrong."""
    signs = (np.where(run.student.predicted == run.labels, 1, -1) for run in runs)
    return np.mean([sign * run.student.confidence for sign, run in zip(signs, runs)], axis=0)


def _varied(positions: Sequence[int], labels: Ints, most: int) -> list[int]:
    """The first ``most`` positions, with at most a quarter of one class while there are others."""
    count: dict[int, int] = {}
    ranked = []
    for rank, position in enumerate(positions):
        label = int(labels[position])
        count[label] = count.get(label, -1) + 1
        ranked.append((count[label] // max(1, most // 4), rank, position))
    return [position for _, _, position in sorted(ranked)][:most]


def flips(ours: Predictions, base: Predictions) -> tuple[int, int]:
    """The number of images that only ``ours`` predicts correctly, and that only ``base`` does."""
    first, second = ours.student.predicted == ours.labels, base.student.predicted == base.labels
    return int((first & ~second).sum()), int((second & ~first).sum())


def _mode(runs: Sequence[Predictions], index: int, wrong: bool) -> int:
    """The most frequent prediction for an image; with ``wrong``, the most frequent wrong one, if any."""
    predicted = [int(run.student.predicted[index]) for run in runs]
    label = int(runs[0].labels[index])
    predicted = [each for each in predicted if each != label] or predicted if wrong else predicted
    return max(sorted(set(predicted)), key=predicted.count)
