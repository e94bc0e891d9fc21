"""MLKD: instances, batches and classes at several temperatures (Jin et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._logits import logit_pair, standardise
from kd.losses.divergences import kl
from kd.registry import losses

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

    Of the weak view, the paper selects the samples and classes of which the teacher is less certain; the code
    multiplies by their share. Of the strong view, the code adds the instance part at the first three temperatures,
    uses the weak logits again at the others, and omits batch and class. All this is reproduced.
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
            check_positive(temperatures=T)
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
