"""PKD: Pearson correlation of feature maps (Cao et al. 2022, arXiv:2207.02039)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._maps import LayerLoss
from kd.registry import losses


def pkd(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """mean (z_s - z_t)^2 / 2, z each channel standardised over batch and positions by std + eps, std unbiased."""
    if student.numel() == student.shape[1]:
        raise InputError("PKD needs more than one value per channel: a batch of at least 2 or a map")
    z_s, z_t = (
        (f - f.mean((0, 2, 3), keepdim=True)) / (f.std((0, 2, 3), keepdim=True) + eps) for f in (student, teacher)
    )
    return F.mse_loss(z_s, z_t) / 2


@losses.register("pkd")
class PKD(LayerLoss):
    """mean (z_s - z_t)^2 / 2 = 1 - correlation, z each channel standardised; summed over layers.

    Cao et al. 2022 (arXiv:2207.02039); weight 6 for two-stage detectors. The student's map is resized
    bilinearly to the teacher's; other channels are brought to the teacher's by a 1x1 convolution.
    """

    resizes = True

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        check_positive(eps=eps)
        self.eps = eps

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(student, teacher.shape[2:], mode="bilinear")
        return pkd(student, teacher, self.eps)
