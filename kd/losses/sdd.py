"""SDD: logits of the parts of an image (Luo et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import VARIANTS, check_choice, check_not_negative, check_positive
from kd.losses._logits import class_numbers, logit_pair, standardise
from kd.losses.divergences import kl
from kd.losses.dkd import dkd_terms
from kd.losses.nkd import nkd_terms
from kd.registry import losses


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
    unlike and 1, 2 for like networks. ``variant=code`` takes the mean over regions, and a region is
    complementary if just one of the two predicts the label; ``paper`` sums over regions and compares the predicted
    classes. Regions are pooled from the map itself, where the authors' code pools those of scales 1 and 2 from a 4 x 4
    grid: the same unless 4 does not divide the size.
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
        check_positive(T=T)
        check_not_negative(complementary=complementary, alpha=alpha, beta=beta, gamma=gamma)
        if not scales or any(m != int(m) or m < 1 for m in scales):
            raise InputError(f"scales must be whole numbers of at least 1, got {list(scales)}")
        check_choice("base", base, ("kl", "dkd", "nkd"))
        check_choice("variant", variant, VARIANTS)
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
        names = {"kl": (), "dkd": ("alpha", "beta"), "nkd": ("gamma",)}[self.base]
        numbers = {name: getattr(self, name) for name in ("T", "complementary", *names)}
        parts = [f"base={self.base}", f"scales={list(self.scales)}", *(f"{k}={v:g}" for k, v in numbers.items())]
        return ", ".join(parts + [f"variant={self.variant}"] * (self.variant != "code")) + (
            ", standardise" * self.standardise
        )
