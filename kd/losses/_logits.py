"""What losses on a pair of logits share: checks of shapes and labels, standardised logits, and their divergence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd.errors import InputError


def standardise(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """(z - mean) / (std + eps) over the classes, the last dimension, with the unbiased std.

    Sun et al. 2024 (arXiv:2403.01427). The gradient flows through mean and std; T then counts in
    units of a sample's own std. A constant row becomes zeros.
    """
    if logits.shape[-1] < 2:
        raise InputError(f"standardise needs logits of at least 2 classes, got shape {list(logits.shape)}")
    std, mean = torch.std_mean(logits, dim=-1, keepdim=True)
    return (logits - mean) / (std + eps)


def checked_logits(loss: str, side: str, tensor: Any, dims: str = "[B, C]") -> Tensor:
    """Returns the tensor; refuses another number of dimensions than in ``dims``."""
    if not isinstance(tensor, Tensor) or tensor.ndim != dims.count(",") + 1:
        shape = f"shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise InputError(f"{loss} takes logits {dims}, got {shape} of the {side}")
    return tensor


def logit_pair(
    loss: str, student: Any, teacher: Any, standardised: bool = False, dims: str = "[B, C]"
) -> tuple[Tensor, Tensor]:
    """Returns both tensors, optionally standardised; refuses anything but logits of the same samples and classes.

    Args:
        loss: name of the loss, for messages.
        student: logits.
        teacher: logits.
        standardised: whether to apply :func:`standardise`.
        dims: the expected shape, for messages.
    """
    student, teacher = checked_logits(loss, "student", student, dims), checked_logits(loss, "teacher", teacher, dims)
    if student.shape[1] < 2:
        raise InputError(
            f"{loss} compares distributions over classes and needs two at least, got {list(student.shape)}"
        )
    if student.shape[:2] != teacher.shape[:2]:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise InputError(f"{loss} compares the same classes of the same samples, got {shapes} of student and teacher")
    return (standardise(student), standardise(teacher)) if standardised else (student, teacher)


def class_numbers(loss: str, labels: Tensor, logits: Tensor) -> Tensor:
    """Labels [B] as int64, one for each of the logits; refuses soft labels, which have no single target class."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(
            f"{loss} splits off one target class and needs class numbers [B], got labels {list(labels.shape)} of"
            f" {labels.dtype}: disable options that make labels soft, such as mixup"
        )
    check_one_each(loss, labels, logits)
    return labels.long()


def check_one_each(loss: str, labels: Tensor, logits: Tensor) -> None:
    """Refuses another number of labels than of samples, which indexing would accept silently."""
    if len(labels) != len(logits):
        raise InputError(f"{loss} needs one label for each sample, got {len(labels)} for {len(logits)}")


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) per sample [B] of log-probabilities [B, C].

    Each term includes q - p, whose sum is 0, so that the rounding of the two normalisers cancels; a high T would
    magnify it by T^2.
    """
    p = log_p.exp()
    return (p * (log_p - log_q) - p + log_q.exp()).sum(dim=1)
