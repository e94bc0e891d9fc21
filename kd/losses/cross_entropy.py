"""Losses on labels and on the student's own distribution: cross-entropy and entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._reduce import check, reduce
from kd.registry import losses


def labelled(labels: Tensor) -> Tensor:
    """Whether each sample [B] has a label: class numbers [B] of at least 0, or probabilities [B, C] that are not all 0.

    Further dimensions, as those of pixels, stay: [B, H, W] for class numbers [B, H, W] or probabilities [B, C, H, W].
    """
    return labels.sum(dim=1) > 0 if labels.is_floating_point() else labels >= 0


def class_of(labels: Tensor) -> Tensor:
    """The class number [B] of labels [B], or the likeliest one of probabilities [B, C]; -1 where unknown."""
    return torch.where(labelled(labels), labels.argmax(1), -1) if labels.is_floating_point() else labels


def cross_entropy(
    student: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    shared: bool = False,
) -> Tensor:
    """Mean over the labelled samples of the batch of -sum_c y_c log softmax(student)_c, in nats; 0 if there are none.

    Args:
        student: logits [B, C], or [B, C, H, W] of pixels.
        labels: class numbers [B], -1 where unknown, or class probabilities [B, C], all 0 where unknown; of pixels
            [B, H, W] or [B, C, H, W].
        label_smoothing: eps; the target becomes (1 - eps) * y + eps / C (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
        weight: of each class [C]: sample i then has w_i = sum_c y_c weight_c, and the mean is torch's weighted one,
            sum_i w_i loss_i / sum_i w_i. (For probabilities as labels torch itself divides by the batch's size.)
        shared: whether processes have different numbers, or weights, of labelled samples: the loss is then scaled so
            that its mean over processes, which DDP trains by, is the mean over the samples of all processes.

    Raises:
        InputError: logits of one class, or labels that are neither class numbers nor probabilities.
    """
    _check(student, labels)
    has_label = labelled(labels)
    labels = labels.to(student.dtype) if labels.is_floating_point() else labels.long()
    if weight is not None:
        weight = weight.to(student)
    each = F.cross_entropy(student, labels, weight, ignore_index=-1, reduction="none", label_smoothing=label_smoothing)
    return (each * has_label).sum() / samples_of(labels, has_label, weight, shared)


def samples_of(labels: Tensor, has_label: Tensor, weight: Tensor | None, shared: bool = False) -> Tensor:
    """The divisor of a mean over the labelled samples: their count, or the sum of their class weights."""
    if weight is None:
        total, minimum = has_label.sum(), 1.0
    else:
        dense = labels.is_floating_point()
        each = labels.to(weight).movedim(1, -1) @ weight if dense else weight[labels.clamp(min=0)]
        total, minimum = (each * has_label).sum(), torch.finfo(weight.dtype).tiny
    return _mean_over_processes(total) if shared else total.clamp(min=minimum)


def _mean_over_processes(total: Tensor) -> Tensor:
    """The mean over processes of a count, or 1 if it is 0 in each of them."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    total = total.clone()
    if world > 1:
        dist.all_reduce(total)
    return torch.where(total > 0, total, world) / world


def _check(student: Tensor, labels: Tensor) -> None:
    if student.ndim < 2 or student.shape[1] < 2:
        raise InputError(f"cross-entropy needs logits [B, C] of at least 2 classes, got {list(student.shape)}")
    dense = labels.is_floating_point()
    wanted = list(student.shape) if dense else [len(student), *student.shape[2:]]
    if list(labels.shape) != wanted:
        what = "probabilities [B, C]" if dense else "class numbers [B]"
        raise InputError(
            f"cross-entropy takes {what} as {str(labels.dtype).removeprefix('torch.')} labels: for logits "
            f"{list(student.shape)} {wanted}, got {list(labels.shape)}"
        )
    if dense and not labels.is_cuda:  # on a GPU this would synchronise in every step
        sums = labels.detach().sum(1)
        if not bool((((sums - 1).abs() < 1e-2) | (sums == 0)).all()):
            odd = float(sums.flatten()[(sums - 1).abs().argmax()])
            raise InputError(
                f"cross-entropy takes class probabilities, but a row of the labels sums to {odd:.4g}: "
                "labels of several classes (multi-hot) are not a distribution"
            )


class ClassWeights(nn.Module):
    """Weights of classes: numbers, or ``balanced``: N / (C * n_c), for n_c of the N labelled training images.

    Raises:
        InputError: numbers that are not at least 0, finite, one for each class and one of them above 0; or
            ``balanced`` for data without ``train_labels``.
    """

    def __init__(self, stated: Sequence[float] | str | None) -> None:
        super().__init__()
        if isinstance(stated, str | None):
            if stated not in (None, "balanced"):
                raise InputError(f"class_weights must be a number for each class, or balanced; got {stated!r}")
        elif (
            not stated or not all(isinstance(w, (int, float)) and 0 <= w < math.inf for w in stated) or not any(stated)
        ):
            raise InputError(f"class_weights must be finite numbers of at least 0, not all 0; got {stated}")
        self.stated = stated
        self.labels: Tensor | None = None
        self.value: Tensor | None
        self.register_buffer("value", None, persistent=False)

    def make(self, classes: int, like: Tensor) -> None:
        """Computes the weights [C] for this number of classes."""
        if self.stated is None:
            return
        if self.stated == "balanced":
            if self.labels is None:
                raise InputError("class_weights=balanced needs data with train_labels; set numbers instead")
            counts = self.labels[self.labels >= 0].bincount(minlength=classes).double()
            values = torch.where(counts > 0, counts.sum() / (classes * counts.clamp(min=1)), 0)
        elif len(self.stated) != classes:
            raise InputError(f"class_weights has {len(self.stated)} numbers for the data's {classes} classes")
        else:
            values = torch.tensor([float(w) for w in self.stated], dtype=torch.float64)
        self.value = values.to(like)

    def extra_repr(self) -> str:
        return "" if self.stated is None else f"class_weights={self.stated}"


class OfLabels(nn.Module):
    """A loss on labels, which are counted over all processes unless every training image has one."""

    shared = True

    def attach_data(self, samples: int, labels: Tensor) -> None:
        """Reads from the training labels [N] whether all are known: then every process has equally many."""
        self.shared = bool((labels < 0).any())


class Weighted(OfLabels):
    """A loss on labels with weights of classes."""

    takes_unlabelled = True
    takes_mixed = True

    def __init__(self, class_weights: Sequence[float] | str | None) -> None:
        super().__init__()
        self.class_weights = ClassWeights(class_weights)

    def attach_data(self, samples: int, labels: Tensor) -> None:
        super().attach_data(samples, labels)
        self.shared = self.shared or self.class_weights.stated is not None
        self.class_weights.labels = labels if self.class_weights.stated == "balanced" else None

    def build(self, student: Tensor) -> None:
        """Computes the class weights; ``student`` are logits [B, C]."""
        self.class_weights.make(student.shape[1], student)


@losses.register("ce")
class CE(Weighted):
    """CE(student, labels), natural log, mean over the batch.

    Labels are class numbers [B] or probabilities [B, C]; samples without a label are ignored: with several processes it
    is the mean over the labelled samples of all of them. ``class_weights``, a number for each class or ``balanced``
    (N / (C * n_c)), makes it torch's weighted mean. See :func:`cross_entropy`.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | str | None = None) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(student, labels, self.label_smoothing, self.class_weights.value, self.shared)

    def extra_repr(self) -> str:
        smoothing = f"label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return ", ".join(filter(None, [smoothing, self.class_weights.extra_repr()]))


def entropy(logits: Tensor, T: float = 1.0, reduction: str = "batchmean", unit: str = "nats") -> Tensor:
    """H(p) = -sum_c p_c log p_c of p = softmax(logits / T), for logits [B, C]."""
    log_p = F.log_softmax(logits / T, dim=-1)
    return reduce(-log_p.exp() * log_p, reduction, unit)


@losses.register("entropy")
class Entropy(nn.Module):
    """H(student) = -sum_c p_c log p_c, mean over the batch.

    ``maximise=true`` negates it: the confidence penalty of Pereyra et al. 2017 (arXiv:1701.06548).
    """

    def __init__(self, T: float = 1.0, maximise: bool = False, unit: str = "nats") -> None:
        super().__init__()
        check("batchmean", unit, T=T)
        self.T, self.maximise, self.unit = T, maximise, unit

    def forward(self, student: Tensor) -> Tensor:
        if student.ndim < 2 or student.shape[1] < 2:
            raise InputError(f"entropy needs logits [B, C] of at least 2 classes, got {list(student.shape)}")
        value = entropy(student, self.T, unit=self.unit)
        return -value if self.maximise else value

    def extra_repr(self) -> str:
        return f"T={self.T:g}" + (", maximise" if self.maximise else "")
