"""Logit losses taken apart and weighted anew: by target and other classes, by sample, by region of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.losses.logits import kl, soft_cross_entropy
from kd.losses.reduce import check
from kd.losses.tempered import (
    VARIANTS,
    check_not_negative,
    check_one_each,
    class_numbers,
    divergence,
    logit_pair,
    standardise,
)
from kd.registry import losses


def split_target(logits: Tensor, labels: Tensor, T: float = 1.0) -> tuple[Tensor, Tensor]:
    """Splits softmax(logits / T) at the target class.

    Returns:
        log (p_y, 1 - p_y) [B, 2], and the log-probabilities of the other classes among themselves [B, C - 1].
        Both come from sums of exponentials, never from 1 - p_y, and stay finite.
    """
    if logits.shape[1] < 2:
        raise InputError(f"a target class is split from at least one other, got logits {list(logits.shape)}")
    target = labels[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= target)
    scaled = logits / T
    z_other = scaled.gather(1, others)
    mass = z_other.logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([scaled.gather(1, target), mass], dim=1), dim=1), z_other - mass


def dkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, T: float = 4.0) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD per sample [B], with their T^2.

    KD is TCKD + (1 - p_y) * NCKD with the teacher's p_y; apart, the confident sample keeps its NCKD.
    """
    (b_s, q_s), (b_t, q_t) = split_target(student, labels, T), split_target(teacher, labels, T)
    return T**2 * divergence(b_s, b_t), T**2 * divergence(q_s, q_t)


@losses.register("dkd")
class DKD(nn.Module):
    """alpha * TCKD + beta * NCKD: T^2 * KL of (target, rest) and T^2 * KL among the rest, mean over the batch.

    Logits [B, C], labels [B]; NCKD is 0 for 2 classes. Zhao et al. 2022 (arXiv:2203.08679), eq. 7. Published
    on CIFAR-100: weight 1 beside CE, 20 epochs of warm-up, and beta per pair: 8 for resnet32x4, 6 for wrn and
    vgg, 2 for resnet56 and resnet110 teachers; ImageNet T 1, beta 0.5.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, T: float = 4.0, standardise: bool = False) -> None:
        super().__init__()
        check("batchmean", T=T)
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.T, self.standardise = alpha, beta, T, standardise

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        student, teacher = logit_pair("dkd", student, teacher, self.standardise)
        tckd, nckd = dkd_terms(student, teacher, class_numbers("dkd", labels, student), self.T)
        return self.alpha * tckd.mean() + self.beta * nckd.mean()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}, T={self.T:g}" + ", standardise" * self.standardise


def nkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, T: float = 1.0) -> tuple[Tensor, Tensor]:
    """Target and non-target part per sample [B].

    -p_t(y) log p_s(y) at T = 1, and T^2 times the cross-entropy of the other classes' distributions at T.
    """
    log_s, log_t = (F.log_softmax(z, dim=1).gather(1, labels[:, None]).squeeze(1) for z in (student, teacher))
    (_, q_s), (_, q_t) = split_target(student, labels, T), split_target(teacher, labels, T)
    return -log_t.exp() * log_s, -(T**2) * (q_t.exp() * q_s).sum(dim=1)


@losses.register("nkd")
class NKD(nn.Module):
    """-p_t(y) log p_s(y) + gamma * T^2 * H(q_t, q_s), q over the classes other than y; mean over the batch.

    Logits [B, C], labels [B]; of soft labels [B, C] the largest class counts, as in the authors' code. Yang et
    al. 2023 (arXiv:2303.13005): added to CE with weight 1. A cross-entropy, so its least value is not 0.
    Published: ImageNet T 1, gamma 1.5; CIFAR-100 T 3, gamma 3.5 for resnet pairs.
    """

    takes_mixed = True

    def __init__(self, gamma: float = 1.5, T: float = 1.0, standardise: bool = False) -> None:
        super().__init__()
        check("batchmean", T=T)
        check_not_negative(gamma=gamma)
        self.gamma, self.T, self.standardise = gamma, T, standardise

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        student, teacher = logit_pair("nkd", student, teacher, self.standardise)
        labels = labels.argmax(dim=1) if labels.ndim == 2 else labels
        target, other = nkd_terms(student, teacher, class_numbers("nkd", labels, student), self.T)
        return target.mean() + self.gamma * other.mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, T={self.T:g}" + ", standardise" * self.standardise


def wsld_weight(student: Tensor, teacher: Tensor, labels: Tensor, eps: float = 1e-7) -> Tensor:
    """w = 1 - exp(-CE_s / CE_t) per sample [B], at T = 1, without gradient: near 0 where the student is ahead."""
    labels = labels.to(student.dtype) if labels.is_floating_point() else labels.long()
    ce_s, ce_t = (F.cross_entropy(z.detach(), labels, reduction="none") for z in (student, teacher))
    return -torch.expm1(-(ce_s / (ce_t + eps)).clamp(min=0))


@losses.register("wsld")
class WSLD(nn.Module):
    """w * T^2 * H(teacher, student), w = 1 - exp(-CE_student / CE_teacher) per sample, mean over the batch.

    Logits [B, C], labels [B] or [B, C]. Zhou et al. 2021 (arXiv:2102.00650): less soft label for
    samples on which the student already does better than the teacher. ``standardise`` touches H alone, w is
    always that of the networks' own logits. Published: CE + 2.5 * this with T 2 on ImageNet, CE + 2.25 * this
    with T 4 on CIFAR-100.
    """

    takes_mixed = True

    def __init__(self, T: float = 2.0, standardise: bool = False) -> None:
        super().__init__()
        check("batchmean", T=T)
        self.T, self.standardise = T, standardise

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        student, teacher = logit_pair("wsld", student, teacher)
        check_one_each("wsld", labels, student)
        weight = wsld_weight(student, teacher, labels)
        if self.standardise:
            student, teacher = standardise(student), standardise(teacher)
        soft = soft_cross_entropy(student / self.T, F.softmax(teacher / self.T, dim=1), "none").sum(dim=1)
        return self.T**2 * (weight * soft).mean()

    def extra_repr(self) -> str:
        return f"T={self.T:g}" + ", standardise" * self.standardise


def cells(logit_map: Tensor, scales: Sequence[int]) -> Tensor:
    """Mean logits of the regions of [B, C, H, W] at every scale m, an m x m grid each: [B, C, sum of m^2]."""
    height, width = logit_map.shape[2:]
    grids = []
    for m in scales:
        if height % m == 0 and width % m == 0:  # adaptive pooling is not deterministic on CUDA, and slower
            grids.append(F.avg_pool2d(logit_map, (height // m, width // m)))
        else:
            grids.append(F.adaptive_avg_pool2d(logit_map, m))
    return torch.cat([grid.flatten(2) for grid in grids], dim=2)


def complementary_cells(local: Tensor, whole: Tensor, labels: Tensor, variant: str = "code") -> Tensor:
    """Where a region's prediction contradicts the image's, [B, N], from logits [B, C, N] and [B, C].

    ``code``: one of the two is right and the other is not. ``paper``: they name different classes.
    """
    local, whole = local.argmax(dim=1), whole.argmax(dim=1, keepdim=True)
    if variant == "paper":
        return local != whole
    return (local == labels[:, None]) != (whole == labels[:, None])


@losses.register("sdd")
class SDD(nn.Module):
    """mean over regions of D(teacher, student), times complementary where the teacher's region and image disagree.

    Student and teacher are logit maps [B, C, H, W], of any two sizes: the classifier applied at every position of
    the map before pooling, the layer ``logit_map`` of every network in the zoo. Their mean over positions is the
    logits. Labels [B]. D is ``base``: kl (T^2 * KL), dkd (with alpha, beta) or nkd (with gamma), at T. Wei et al.
    2024 (arXiv:2403.13512), eq. 6 to 10; weights of the base method, 30 epochs of warm-up, scales 1, 2, 4 for
    unlike and 1, 2 for like networks. ``variant=code`` takes the mean over regions and asks who is right about the
    label; ``paper`` sums over regions and asks whether the classes differ. Regions are pooled from the map itself,
    where the authors' code pools those of scales 1 and 2 from a 4 x 4 grid: the same unless 4 does not divide the
    size.
    """

    def __init__(
        self,
        T: float = 4.0,
        scales: Sequence[int] = (1, 2, 4),
        complementary: float = 2.0,
        base: str = "kl",
        alpha: float = 1.0,
        beta: float = 8.0,
        gamma: float = 1.5,
        variant: str = "code",
        standardise: bool = False,
    ) -> None:
        super().__init__()
        check("batchmean", T=T)
        check_not_negative(complementary=complementary, alpha=alpha, beta=beta, gamma=gamma)
        if not scales or any(m != int(m) or m < 1 for m in scales):
            raise InputError(f"scales must be whole numbers of at least 1, got {list(scales)}")
        if base not in ("kl", "dkd", "nkd"):
            raise unknown("base", base, ("kl", "dkd", "nkd"))
        if variant not in VARIANTS:
            raise unknown("variant", variant, VARIANTS)
        self.T, self.scales, self.complementary = T, tuple(int(m) for m in scales), complementary
        self.base, self.alpha, self.beta, self.gamma = base, alpha, beta, gamma
        self.variant, self.standardise = variant, standardise

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        student, teacher = logit_pair("sdd", student, teacher, dims="[B, C, H, W]")
        labels = class_numbers("sdd", labels, student)
        local_s, local_t = cells(student, self.scales), cells(teacher, self.scales)
        contradicts = complementary_cells(local_t, teacher.mean(dim=(2, 3)), labels, self.variant)
        regions = local_s.shape[2]
        rows_s, rows_t = (local.transpose(1, 2).flatten(0, 1) for local in (local_s, local_t))
        terms = self.per_row(rows_s, rows_t, labels.repeat_interleave(regions)).unflatten(0, (-1, regions))
        weighted = torch.where(contradicts, self.complementary * terms, terms)
        return weighted.mean() * (regions if self.variant == "paper" else 1)

    def per_row(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The base loss of each row of logits [N, C], unreduced."""
        if self.standardise:
            student, teacher = standardise(student), standardise(teacher)
        if self.base == "kl":
            return kl(student, teacher, self.T, "none").sum(dim=1)
        if self.base == "dkd":
            tckd, nckd = dkd_terms(student, teacher, labels, self.T)
            return self.alpha * tckd + self.beta * nckd
        target, other = nkd_terms(student, teacher, labels, self.T)
        return target + self.gamma * other

    def extra_repr(self) -> str:
        own = {"kl": {}, "dkd": {"alpha": self.alpha, "beta": self.beta}, "nkd": {"gamma": self.gamma}}[self.base]
        numbers = {"T": self.T, "complementary": self.complementary, **own}
        shown = [f"base={self.base}", f"scales={list(self.scales)}", *(f"{k}={v:g}" for k, v in numbers.items())]
        return ", ".join(shown + [f"variant={self.variant}"] * (self.variant != "code")) + (
            ", standardise" * self.standardise
        )
