"""Logits tempered otherwise than by one fixed T on both sides: standardised, learned, one-sided, or made of labels.

Also what every loss on a pair of logits needs before it starts: :func:`logit_pair`, :func:`class_numbers`.
This module imports no other loss, so that any of them may import it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.losses.reduce import check
from kd.registry import losses

VARIANTS = ("code", "paper")


def standardise(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """(z - mean) / (std + eps) over the classes, the last dimension, with the unbiased std.

    Sun et al. 2024 (arXiv:2403.01427). The gradient flows through mean and std; T then counts in
    units of a sample's own std. A constant row becomes zeros.
    """
    if logits.shape[-1] < 2:
        raise InputError(f"standardise needs logits of at least 2 classes, got shape {list(logits.shape)}")
    std, mean = torch.std_mean(logits, dim=-1, keepdim=True)
    return (logits - mean) / (std + eps)


def checked_logits(loss: str, side: str, given: Any, dims: str = "[B, C]") -> Tensor:
    """The tensor given, if it has as many dimensions as ``dims`` says in words."""
    if not isinstance(given, Tensor) or given.ndim != dims.count(",") + 1:
        shape = f"shape {list(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise InputError(f"{loss} takes logits {dims}, got {shape} of the {side}")
    return given


def logit_pair(
    loss: str, student: Any, teacher: Any, standardised: bool = False, dims: str = "[B, C]"
) -> tuple[Tensor, Tensor]:
    """The two tensors, standardised if asked; refuses what is not logits of the same samples and classes.

    Args:
        loss: the name to complain under.
        student: what the loss was given.
        teacher: the same.
        standardised: whether to apply :func:`standardise`.
        dims: the shape expected, in words.
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
    """Labels [B] as int64, one for each of the logits; refuses soft labels, which have no one target class."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(
            f"{loss} splits off one target class and needs class numbers [B], got labels {list(labels.shape)} of"
            f" {labels.dtype}: switch off what makes labels soft, such as mixup"
        )
    check_one_each(loss, labels, logits)
    return labels.long()


def check_one_each(loss: str, labels: Tensor, logits: Tensor) -> None:
    """Refuses another number of labels than samples, which indexing would accept in silence."""
    if len(labels) != len(logits):
        raise InputError(f"{loss} needs one label for each sample, got {len(labels)} for {len(logits)}")


def check_not_negative(**numbers: float) -> None:
    """Refuses numbers that are not finite or below 0."""
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must be a finite number of at least 0, got {value}")


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) per sample [B] of log-probabilities [B, C].

    Each term carries q - p, whose sum is 0: the rounding of the two normalisers cancels, which a high T would
    otherwise show, since T^2 magnifies it while KL shrinks.
    """
    p = log_p.exp()
    return (p * (log_p - log_q) - p + log_q.exp()).sum(dim=1)


def scale_gradient(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """The same values; the gradient multiplied by ``factor``, reversed where that is negative."""
    fixed = tensor.detach()
    return fixed + factor * (tensor - fixed)


def ctkd_temperature(theta: Tensor, t_start: float = 1.0, t_end: float = 20.0) -> Tensor:
    """T = t_start + t_end * sigmoid(theta), between t_start and t_start + t_end."""
    return t_start + t_end * theta.sigmoid()


def ctkd_lambda(epoch: float, loops: int = 10, lambda_max: float = 0.0, lambda_min: float = -1.0) -> float:
    """Factor on theta's gradient in ``epoch``, counted from 1: half a cosine from max at 0 to min at ``loops``."""
    progress = min(max(epoch, 0), loops) / loops
    return lambda_min + (1 + math.cos(math.pi * progress)) / 2 * (lambda_max - lambda_min)


def ctkd(student: Tensor, teacher: Tensor, T: Tensor) -> Tensor:
    """T^2 * KL(teacher || student) for a tensor T, with gradient through both softmaxes and the factor T^2."""
    log_p, log_q = F.log_softmax(teacher / T, dim=1), F.log_softmax(student / T, dim=1)
    return T**2 * divergence(log_q, log_p).mean()


@losses.register("ctkd")
class CTKD(nn.Module):
    """T^2 * KL(teacher || student) with T = t_start + t_end * sigmoid(theta), theta learned to make it larger.

    Logits [B, C]. Li et al. 2023 (arXiv:2211.16231), the global temperature: a gradient reversal makes T the
    student's adversary, eased in over the first ``loops`` epochs (:func:`ctkd_lambda`). The objective says at
    each epoch which it is, through :meth:`on_epoch`; until then the first epoch's factor holds. T starts at 15.6
    and may sink to ``t_start``, so it is logged. Published weights on CIFAR-100: 0.1 * CE + 0.9 * this, or 9 with
    ``standardise``.
    """

    reversal: Tensor

    def __init__(
        self,
        t_start: float = 1.0,
        t_end: float = 20.0,
        loops: int = 10,
        lambda_max: float = 0.0,
        lambda_min: float = -1.0,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        check("batchmean", t_start=t_start, t_end=t_end, loops=loops)
        self.t_start, self.t_end, self.standardise = t_start, t_end, standardise
        self.schedule = (loops, lambda_max, lambda_min)
        self.theta = nn.Parameter(torch.ones(1))
        self.register_buffer("reversal", torch.tensor(0.0))
        self.on_epoch(0)

    def on_epoch(self, epoch: int) -> None:
        """Sets the strength of the reversal for ``epoch``, counted from 0 where the authors count from 1."""
        self.reversal.fill_(ctkd_lambda(epoch + 1, *self.schedule))

    def logged(self) -> dict[str, Tensor]:
        """The temperature in force."""
        return {"T": ctkd_temperature(self.theta.detach(), self.t_start, self.t_end).squeeze()}

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = logit_pair("ctkd", student, teacher, self.standardise)
        theta = scale_gradient(self.theta, self.reversal).squeeze()
        return ctkd(student, teacher, ctkd_temperature(theta, self.t_start, self.t_end))

    def extra_repr(self) -> str:
        loops, lambda_max, lambda_min = self.schedule
        ramp = f"lambda={lambda_max:g}..{lambda_min:g} in {loops} epochs"
        shown = f"t_start={self.t_start:g}, t_end={self.t_end:g}, {ramp}"
        return shown + ", standardise" * self.standardise


def power_sum(logits: Tensor, gamma: float) -> Tensor:
    """U = sum_c p_c^gamma per sample, p = softmax(logits): 1 for a one-hot p, C^(1 - gamma) for a uniform one."""
    return (gamma * F.log_softmax(logits, dim=1)).logsumexp(dim=1).exp()


def ttm(student: Tensor, teacher: Tensor, gamma: float = 0.1) -> Tensor:
    """KL(p^gamma / U || q) per sample, p and q at T = 1: only the teacher is softened, by T = 1 / gamma."""
    return divergence(F.log_softmax(student, dim=1), F.log_softmax(gamma * teacher, dim=1))


@losses.register("ttm")
class TTM(nn.Module):
    """KL(softmax(gamma * teacher) || softmax(student)), mean over the batch; no T on the student, no T^2.

    Logits [B, C]. Transformed teacher matching, Zheng and Yang 2024 (arXiv:2402.11148), eq. 2: KD plus a Renyi
    entropy that rewards a smooth student. Published weight per pair (table 8), 7 to 101 beside CE: 100 for
    resnet32x4 -> resnet8x4, 45 for vgg13 -> vgg8.
    """

    def __init__(self, gamma: float = 0.1, standardise: bool = False) -> None:
        super().__init__()
        check("batchmean", gamma=gamma)
        self.gamma, self.standardise = gamma, standardise

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return ttm(*logit_pair("ttm", student, teacher, self.standardise), self.gamma).mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}" + ", standardise" * self.standardise


@losses.register("wttm")
class WTTM(TTM):
    """U * KL(softmax(gamma * teacher) || softmax(student)), U = sum_c p_c^gamma of the teacher, mean over the batch.

    TTM with more weight on samples whose teacher is unsure; same paper, eq. 23. Published weight per pair beside
    CE, 1.5 to 4 among relatives: 3 for resnet32x4 -> resnet8x4.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = logit_pair("wttm", student, teacher, self.standardise)
        return (power_sum(teacher, self.gamma) * ttm(student, teacher, self.gamma)).mean()


def virtual_teacher(labels: Tensor, logits: Tensor, correct: float = 0.99) -> Tensor:
    """Probabilities shaped like ``logits`` [B, C]: ``correct`` for the label, the rest shared by the others.

    Linear in the label's distribution, hence defined for class numbers [B] and for probabilities [B, C] alike.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise InputError(f"a virtual teacher needs at least 2 classes, got logits {list(logits.shape)}")
    if labels.ndim == 1:
        labels = labels[:, None] == torch.arange(classes, device=labels.device)
    other = (1 - correct) / (classes - 1)
    return other + (correct - other) * labels.to(logits.dtype)


def tfkd(student: Tensor, labels: Tensor, T: float = 20.0, correct: float = 0.99, variant: str = "code") -> Tensor:
    """KL(virtual teacher softened by T || student), mean over the batch; see :class:`TfKD`."""
    p = virtual_teacher(labels, student, correct)
    if variant == "code":
        return divergence(F.log_softmax(student, dim=1), F.log_softmax(p / T, dim=1)).mean()
    return divergence(F.log_softmax(student / T, dim=1), F.log_softmax(p.log() / T, dim=1)).mean()


@losses.register("tfkd")
class TfKD(nn.Module):
    """KL(v || student), v softened by T from: correct for the label, (1 - correct) / (C - 1) for the others; no T^2.

    Logits [B, C], labels [B] or [B, C]; no teacher runs. Tf-KD_reg of Yuan et al. 2020 (arXiv:1909.11723), eq. 8
    and 9. ``variant=code`` softens v by softmax(v / T), probabilities taken for logits, and leaves the student at
    T = 1; ``paper`` softens both sides as a temperature does. The authors' mean over B * C times 100 is, with 100
    classes, this mean over the batch. Published: 0.9 * CE + 0.1 * this.
    """

    takes_mixed = True

    def __init__(self, T: float = 20.0, correct: float = 0.99, variant: str = "code") -> None:
        super().__init__()
        check("batchmean", T=T)
        if not 0 < correct < 1:
            raise InputError(f"correct must lie between 0 and 1, got {correct}")
        if variant not in VARIANTS:
            raise unknown("variant", variant, VARIANTS)
        self.T, self.correct, self.variant = T, correct, variant

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        check_one_each("tfkd", labels, checked_logits("tfkd", "student", student))
        return tfkd(student, labels, self.T, self.correct, self.variant)

    def extra_repr(self) -> str:
        return f"T={self.T:g}, correct={self.correct:g}" + f", variant={self.variant}" * (self.variant != "code")
