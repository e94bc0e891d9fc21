"""AT: attention maps (Zagoruyko and Komodakis 2017, arXiv:1612.03928)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import VARIANTS, check_choice
from kd.losses._maps import Layers, over_positions, pairs, same_size
from kd.registry import losses


def attention(features: Tensor, p: int = 2) -> Tensor:
    """Q [B, H * W]: the map of mean_c f^p, flattened and of unit length; a zero map stays zero."""
    return F.normalize(features.pow(p).mean(1).flatten(1))


def at(student: Tensor, teacher: Tensor, p: int = 2, variant: str = "code") -> Tensor:
    """Attention transfer for one layer; the larger map is pooled first.

    ``code`` is mean (Q_s - Q_t)^2 over all elements, ``paper`` mean_b ||Q_s - Q_t||.
    """
    student, teacher = same_size(student, teacher)
    over_positions("AT", student)
    difference = attention(student, p) - attention(teacher, p)
    if variant == "paper":
        return torch.linalg.vector_norm(difference, dim=1).mean()
    return difference.square().mean()


@losses.register("at")
class AT(nn.Module):
    """mean (Q_s - Q_t)^2, Q the unit-length map of mean_c f^p; summed over layers.

    Zagoruyko and Komodakis 2017 (arXiv:1612.03928); the mean square is the authors' code and what the benchmarks
    run, weight 1000; eq. 2 has beta / 2 * ||Q_s - Q_t|| (``variant=paper``, here without beta / 2).
    """

    def __init__(self, p: int = 2, variant: str = "code") -> None:
        super().__init__()
        if p < 1:
            raise InputError(f"p must be at least 1, got {p}")
        check_choice("variant", variant, VARIANTS)
        self.p, self.variant = p, variant

    def parts(self, student: Layers, teacher: Layers) -> list[Tensor]:
        """The scalars layer by layer, whose sum is the loss."""
        return [at(s, t, self.p, self.variant) for s, t in pairs("AT", student, teacher)]

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        return torch.stack(self.parts(student, teacher)).sum()

    def extra_repr(self) -> str:
        return f"p={self.p}" + (f", variant={self.variant}" if self.variant != "code" else "")
