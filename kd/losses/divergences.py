"""Divergences between the teacher's and the student's distributions.

Throughout, p is the teacher's and q the student's distribution, softmax(logits / T) over the last dimension
of logits [B, C]; everything is computed from log-softmax, in natural logarithms.

KL(p || q) = H(p, q) - H(p), and H(p) does not depend on the student: KL and soft cross-entropy therefore have
the same student gradient and differ by the teacher's entropy, a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._fused_kl import can_fuse, fused_kl
from kd.losses._logits import logit_pair
from kd.losses._reduce import check, reduce, reduce_sum
from kd.registry import losses

HOT = 100.0  # a temperature above which KL, of the order of 1 / T^2, is lost in float32's rounding


def _log_p_q(student: Tensor, teacher: Tensor, T: float) -> tuple[Tensor, Tensor]:
    return F.log_softmax(teacher / T, dim=-1), F.log_softmax(student / T, dim=-1)


def kl_div(
    log_q: Tensor, p: Tensor, reduction: str = "batchmean", log_target: bool = False, unit: str = "nats"
) -> Tensor:
    """KL(p || q) of given distributions, argument for argument ``torch.nn.functional.kl_div``.

    Args:
        log_q: log-probabilities [B, C].
        p: target probabilities [B, C], or their logarithms with ``log_target``; 0 log 0 = 0.

    Raises:
        InputError: tensors without a batch dimension, where torch's ``batchmean`` divides by C.
    """
    return reduce(F.kl_div(log_q, p, reduction="none", log_target=log_target), reduction, unit)


def kl(student: Tensor, teacher: Tensor, T: float = 4.0, reduction: str = "batchmean", unit: str = "nats") -> Tensor:
    """T^2 * KL(p || q), the soft part of Hinton et al. 2015 (arXiv:1503.02531), section 2.

    The factor T^2 keeps the gradient's size when T changes: d/dz_s = T (q - p) / B.
    Log-probabilities may be given in place of logits, since log-softmax leaves them as they are.
    """
    if not isinstance(T, Tensor) and T > HOT and student.dtype == torch.float32 and student.device.type != "mps":
        return kl(student.double(), teacher.double(), T, reduction, unit).float()
    if reduction != "none" and not isinstance(T, Tensor) and can_fuse(student, teacher):
        return T**2 * reduce_sum(fused_kl(student, teacher, T), student.shape, reduction, unit)
    log_p, log_q = _log_p_q(student, teacher, T)
    return T**2 * kl_div(log_q, log_p, reduction, log_target=True, unit=unit)


def reverse_kl(
    student: Tensor, teacher: Tensor, T: float = 4.0, reduction: str = "batchmean", unit: str = "nats"
) -> Tensor:
    """T^2 * KL(q || p): mode-seeking, where KL(p || q) is mass-covering."""
    return kl(teacher, student, T, reduction, unit)


def symmetric_kl(
    student: Tensor, teacher: Tensor, T: float = 4.0, reduction: str = "batchmean", unit: str = "nats"
) -> Tensor:
    """T^2 * (KL(p || q) + KL(q || p)) / 2, half of Jeffreys' divergence."""
    forward = kl(student, teacher, T, reduction, unit)
    return (forward + reverse_kl(student, teacher, T, reduction, unit)) / 2


def soft_cross_entropy(
    student: Tensor, probabilities: Tensor, reduction: str = "batchmean", unit: str = "nats"
) -> Tensor:
    """H(p, q) = -sum_c p_c log softmax(student)_c for target probabilities [B, C]."""
    return reduce(-probabilities * F.log_softmax(student, dim=-1), reduction, unit)


def js(student: Tensor, teacher: Tensor, T: float = 1.0, reduction: str = "batchmean", unit: str = "nats") -> Tensor:
    """Jensen-Shannon: KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2; no T^2; at most log 2.

    Lin 1991, doi:10.1109/18.61115. scipy's ``jensenshannon`` is its square root.
    """
    log_p, log_q = _log_p_q(student, teacher, T)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(log_p.new_tensor(2.0))
    terms = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)) / 2
    return reduce(terms, reduction, unit)


def total_variation(student: Tensor, teacher: Tensor, T: float = 1.0, reduction: str = "batchmean") -> Tensor:
    """sum_c |p_c - q_c| / 2, in [0, 1]; no T^2 and no unit."""
    log_p, log_q = _log_p_q(student, teacher, T)
    return reduce((log_p.exp() - log_q.exp()).abs() / 2, reduction)


def alpha_beta(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 1.0,
    beta: float = 0.0,
    T: float = 1.0,
    reduction: str = "batchmean",
) -> Tensor:
    """Alpha-beta divergence D(p || q) of Cichocki, Cruces and Amari 2011 (doi:10.3390/e13010134), eq. 17 to 20.

    -1 / (a b) * sum_c [p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b)], continued to its limits where
    a, b or a + b is 0. (1, 0) is KL(p || q), (0, 1) KL(q || p), (1, 1) half the squared distance, (0.5, 0.5)
    four times the squared Hellinger distance. No T^2.
    """
    log_p, log_q = _log_p_q(student, teacher, T)
    a, b, s = alpha, beta, alpha + beta
    if a == 0 and b == 0:
        terms = (log_p - log_q).square() / 2
    elif b == 0:
        terms = ((a * log_p).exp() * a * (log_p - log_q) - (a * log_p).exp() + (a * log_q).exp()) / a**2
    elif a == 0:
        terms = ((b * log_q).exp() * b * (log_q - log_p) - (b * log_q).exp() + (b * log_p).exp()) / b**2
    elif s == 0:
        ratio = a * (log_q - log_p)
        terms = (ratio + (-ratio).exp() - 1) / a**2
    else:
        mixed = (a * log_p + b * log_q).exp()
        terms = -(mixed - a / s * (s * log_p).exp() - b / s * (s * log_q).exp()) / (a * b)
    return reduce(terms, reduction)


def gaussian_kl(
    student: Sequence[Tensor], teacher: Sequence[Tensor], reduction: str = "batchmean", unit: str = "nats"
) -> Tensor:
    """KL(N_t || N_s) of diagonal Gaussians, each given as (mean [B, D], log variance [B, D]).

    Per dimension (log v_s - log v_t + (v_t + (m_t - m_s)^2) / v_s - 1) / 2; Kingma and Welling 2014
    (arXiv:1312.6114), appendix B, for a general second Gaussian.
    """
    (mean_s, log_s), (mean_t, log_t) = student, teacher
    terms = log_s - log_t + (log_t - log_s).exp() + (mean_t - mean_s).square() * (-log_s).exp() - 1
    return reduce(terms / 2, reduction, unit)


class _Divergence(nn.Module):
    """Base of the classes below: checks and prints temperature, reduction, unit and standardisation."""

    def __init__(
        self, T: float = 4.0, reduction: str = "batchmean", unit: str = "nats", standardise: bool = False
    ) -> None:
        super().__init__()
        check(reduction, unit, T=T)
        self.T, self.reduction, self.unit, self.standardise = T, reduction, unit, standardise

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.between(*logit_pair(type(self).__name__, student, teacher, self.standardise))

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of logits [B, C], already standardised if so configured; here KL itself."""
        return kl(student, teacher, self.T, self.reduction, self.unit)

    def extra_repr(self) -> str:
        plain = {"reduction": "batchmean", "unit": "nats", "standardise": False}
        odd = [f"{key}={getattr(self, key)}" for key, usual in plain.items() if getattr(self, key) != usual]
        return ", ".join([f"T={self.T:g}", *odd])


@losses.register("kl")
class KL(_Divergence):
    """T^2 * KL(teacher || student), natural log, mean over the batch.

    Hinton et al. 2015 (arXiv:1503.02531). ``reduction=mean`` is the scale of code that calls ``nn.KLDivLoss()``
    without arguments: 1 / C of this one. ``standardise`` makes it LSKD (Sun et al. 2024, arXiv:2403.01427; T 2,
    weight 9). See :func:`kl`.
    """


@losses.register("reverse_kl")
class ReverseKL(_Divergence):
    """T^2 * KL(student || teacher), natural log, mean over the batch."""

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return reverse_kl(student, teacher, self.T, self.reduction, self.unit)


@losses.register("symmetric_kl")
class SymmetricKL(_Divergence):
    """T^2 * (KL(teacher || student) + KL(student || teacher)) / 2, mean over the batch."""

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return symmetric_kl(student, teacher, self.T, self.reduction, self.unit)


@losses.register("soft_ce")
class SoftCE(_Divergence):
    """T^2 * H(teacher, student), mean over the batch: KL's gradient, larger by T^2 times the teacher's entropy."""

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        p = F.softmax(teacher / self.T, dim=-1)
        return self.T**2 * soft_cross_entropy(student / self.T, p, self.reduction, self.unit)


@losses.register("js")
class JS(_Divergence):
    """JS(teacher, student), natural log, mean over the batch, no T^2. See :func:`js`."""

    def __init__(
        self, T: float = 1.0, reduction: str = "batchmean", unit: str = "nats", standardise: bool = False
    ) -> None:
        super().__init__(T, reduction, unit, standardise)

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return js(student, teacher, self.T, self.reduction, self.unit)


@losses.register("tv")
class TV(_Divergence):
    """sum |teacher - student| / 2 of the probabilities, mean over the batch, no T^2."""

    def __init__(self, T: float = 1.0, reduction: str = "batchmean", standardise: bool = False) -> None:
        super().__init__(T, reduction, standardise=standardise)

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return total_variation(student, teacher, self.T, self.reduction)


@losses.register("alpha_beta")
class AlphaBeta(_Divergence):
    """Alpha-beta divergence of teacher and student, mean over the batch, no T^2. See :func:`alpha_beta`."""

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        T: float = 1.0,
        reduction: str = "batchmean",
        standardise: bool = False,
    ) -> None:
        super().__init__(T, reduction, standardise=standardise)
        self.alpha, self.beta = alpha, beta

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return alpha_beta(student, teacher, self.alpha, self.beta, self.T, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}, {super().extra_repr()}"


@losses.register("gaussian_kl")
class GaussianKL(nn.Module):
    """KL(teacher || student) of diagonal Gaussians, mean over the batch.

    Each side is a list of two layers, mean and log variance. See :func:`gaussian_kl`.
    """

    def __init__(self, reduction: str = "batchmean", unit: str = "nats") -> None:
        super().__init__()
        check(reduction, unit)
        self.reduction, self.unit = reduction, unit

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        for side, layers in (("student", student), ("teacher", teacher)):
            if not isinstance(layers, (list, tuple)) or len(layers) != 2:
                raise InputError(f"gaussian_kl needs two layers of the {side}: [mean, log variance]")
        return gaussian_kl(student, teacher, self.reduction, self.unit)
