"""Losses that match what logits say together: correlations over classes and batch, Gram matrices, the top class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses.logits import kl
from kd.losses.reduce import check
from kd.losses.tempered import check_not_negative, logit_pair, standardise
from kd.registry import losses


def pearson(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Correlation of the rows of two matrices, <a, b> / (|a| |b| + eps) after centring; 0 for a constant row."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / (lengths + eps)


def dist_terms(student: Tensor, teacher: Tensor, T: float = 1.0) -> tuple[Tensor, Tensor]:
    """T^2 * (1 - mean correlation) of the probabilities' rows, inter, and of their columns, intra."""
    p_s, p_t = F.softmax(student / T, dim=1), F.softmax(teacher / T, dim=1)
    return T**2 * (1 - pearson(p_s, p_t).mean()), T**2 * (1 - pearson(p_s.T, p_t.T).mean())


@losses.register("dist")
class DIST(nn.Module):
    """T^2 * [beta * (1 - mean correlation over classes, per sample) + gamma * (1 - the same over samples, per class)].

    Logits [B, C]; a batch of one has no correlation of samples, its term is T^2 with gradient 0. Huang et al.
    2022 (arXiv:2205.10536), section 3; the factor T^2 is the authors' code's. Published: CE + 2 * this, T 4 on
    CIFAR-100 and 1 on ImageNet.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, T: float = 1.0, standardise: bool = False) -> None:
        super().__init__()
        check("batchmean", T=T)
        check_not_negative(beta=beta, gamma=gamma)
        self.beta, self.gamma, self.T, self.standardise = beta, gamma, T, standardise

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        inter, intra = dist_terms(*logit_pair("dist", student, teacher, self.standardise), self.T)
        return self.beta * inter + self.gamma * intra

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, gamma={self.gamma:g}, T={self.T:g}" + ", standardise" * self.standardise


Terms = tuple[Tensor, Tensor, Tensor]


def mlkd_terms(student: Tensor, teacher: Tensor, T: float, standardised: bool = False) -> Terms:
    """The three levels at one temperature, P = softmax(logits / T) [B, C].

    Returns:
        instance T^2 * KL, batch |P_t P_t' - P_s P_s'|^2 / B, class |P_t' P_t - P_s' P_s|^2 / C; standardised
        logits enter the first alone.
    """
    p_s, p_t = F.softmax(student / T, dim=1), F.softmax(teacher / T, dim=1)
    samples, classes = student.shape
    batch = (p_t @ p_t.T - p_s @ p_s.T).square().sum() / samples
    class_ = (p_t.T @ p_t - p_s.T @ p_s).square().sum() / classes
    if standardised:
        student, teacher = standardise(student), standardise(teacher)
    return kl(student, teacher, T), batch, class_


def share_below_median(values: Tensor) -> Tensor:
    """The part of the values [N] that is at most their median, interpolated; about one half."""
    return (values <= values.quantile(0.5)).to(values.dtype).mean()


def mlkd_two_views(
    student: Sequence[Tensor], teacher: Sequence[Tensor], temperatures: Sequence[float], standardised: bool = False
) -> Terms:
    """Instance, batch and class part of the released code, for logits of [weak, strong] views of the same images.

    The paper keeps, of the weak view, samples and classes that the teacher is less sure of; the code multiplies
    by the share that is kept. Of the strong view it adds the instance part at the first three temperatures, takes
    the weak logits again at the rest, and leaves batch and class out. All this is reproduced.
    """
    (s_weak, s_strong), (t_weak, t_strong) = student, teacher
    p_t = F.softmax(t_weak, dim=1)
    unsure, rare = share_below_median(p_t.amax(dim=1)), share_below_median(p_t.sum(dim=0))
    weak = [mlkd_terms(s_weak, t_weak, T, standardised) for T in temperatures]
    strong = [mlkd_terms(s_strong, t_strong, T, standardised)[0] for T in temperatures[:3]]
    instance, batch, class_ = (torch.stack(level) for level in zip(*weak, strict=True))
    again = torch.stack([*strong, *instance[3:]]).sum()
    return unsure * instance.sum() + again, unsure * batch.sum(), rare * class_.sum()


@losses.register("mlkd")
class MLKD(nn.Module):
    """sum over T of T^2 * KL + |samples' Gram difference|^2 / B + |classes' Gram difference|^2 / C.

    Multi-level logit distillation, Jin et al. 2023 (CVPR). Logits [B, C] of one view give the sum of
    the three levels over ``temperatures``, nothing masked (:func:`mlkd_terms`). Lists of two, [weak, strong],
    give the released code's total instead, with CE left to its own term (:func:`mlkd_two_views`). ``standardise``
    enters the KL alone. Published: 0.1 * CE + 0.9 * this over two views and 480 epochs; with standardised logits
    9 * this, the first temperature 2.
    """

    def __init__(self, temperatures: Sequence[float] = (4.0, 3.0, 5.0, 2.0, 6.0), standardise: bool = False) -> None:
        super().__init__()
        if not temperatures:
            raise InputError("temperatures must name at least one")
        for T in temperatures:
            check("batchmean", temperatures=T)
        self.temperatures, self.standardise = tuple(float(T) for T in temperatures), standardise

    def forward(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Tensor:
        if isinstance(student, (list, tuple)) and isinstance(teacher, (list, tuple)):
            if len(student) != 2 or len(teacher) != 2:
                raise InputError("mlkd takes logits, or lists of two: [weak view, strong view]")
            views = [logit_pair("mlkd", *view) for view in zip(student, teacher, strict=True)]
            views_s, views_t = zip(*views, strict=True)
            return torch.stack(mlkd_two_views(views_s, views_t, self.temperatures, self.standardise)).sum()
        one_s, one_t = logit_pair("mlkd", student, teacher)
        levels = [mlkd_terms(one_s, one_t, T, self.standardise) for T in self.temperatures]
        return torch.stack([term for terms in levels for term in terms]).sum()

    def extra_repr(self) -> str:
        return f"temperatures=[{', '.join(f'{T:g}' for T in self.temperatures)}]" + ", standardise" * self.standardise


@losses.register("deit_hard")
class DeiTHard(nn.Module):
    """CE(student, argmax of the teacher), mean over the batch.

    Logits [B, C]; the student's are those of the distillation head where it has one. Touvron et al. 2021
    (arXiv:2012.12877), eq. 3: 0.5 * CE on the class head + 0.5 * this. The soft variant, eq. 2, is the loss
    ``kl`` with ``reduction=mean``, the scale of the authors' code, or without it, the paper's.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = logit_pair("deit_hard", student, teacher)
        return F.cross_entropy(student, teacher.argmax(dim=1))
