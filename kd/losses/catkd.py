"""CAT-KD: class activation maps (Guo et al. 2023, CVPR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._maps import Layers, pairs, pool
from kd.registry import losses


def catkd(student: Tensor, teacher: Tensor, resolution: int = 2, normalise: bool = True) -> Tensor:
    """mean (M_s - M_t)^2 of class activation maps [B, C, H, W] pooled to ``resolution``, each of unit length."""
    if student.shape[1] != teacher.shape[1]:
        raise InputError(
            f"CAT-KD needs one map per class from both sides, got {student.shape[1]} and {teacher.shape[1]}"
        )
    m_s, m_t = (pool(side, (resolution, resolution)).flatten(2) for side in (student, teacher))
    if normalise:
        m_s, m_t = F.normalize(m_s, dim=2), F.normalize(m_t, dim=2)
    return F.mse_loss(m_s, m_t)


@losses.register("catkd")
class CATKD(nn.Module):
    """mean (M_s - M_t)^2, M a class's activation map pooled to 2x2, of unit length; summed over layers.

    Guo et al. 2023 (arXiv:2304.12777), section 3; maps [B, C, H, W] of the classifier before pooling
    (``logit_map``). Weight 400; the CIFAR-100 recipes run ``normalise=false`` with a weight by pair.
    """

    def __init__(self, resolution: int = 2, normalise: bool = True) -> None:
        super().__init__()
        check_positive(resolution=resolution)
        self.resolution, self.normalise = resolution, normalise

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        both = pairs("CAT-KD", student, teacher)
        return torch.stack([catkd(s, t, self.resolution, self.normalise) for s, t in both]).sum()

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}" + ("" if self.normalise else ", normalise=False")
