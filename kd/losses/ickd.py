"""ICKD: correlation between channels (Liu et al. 2021, ICCV)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_choice
from kd.losses._pairs import Layers, matched
from kd.registry import losses


def ickd(student: Tensor, teacher: Tensor) -> Tensor:
    """sum (G_t - G_s)^2 / (B C), G the Gram matrix [B, C, C] of a map's channels with rows of unit length."""
    return F.mse_loss(_channels(student), _channels(teacher)) * student.shape[1]


def _channels(maps: Tensor) -> Tensor:
    flat = maps.flatten(2)
    return F.normalize(flat @ flat.mT, dim=2)


@losses.register("ickd")
class ICKD(nn.Module):
    """sum (G_t - G_s)^2 / (B C), G the C x C Gram matrix of the channels with rows of unit length.

    Maps [B, C, H, W] of any sizes, one layer or a list of them; the student's go through a trained 1x1
    convolution to the teacher's channels and batch normalisation. Liu et al. 2021 (ICCV), ICKD-C, in the
    authors' code; weight 2.5 on the last map. ``variant=torchdistill`` is that port's scale, smaller by B.
    """

    def __init__(self, variant: str = "code") -> None:
        super().__init__()
        check_choice("variant", variant, ("code", "torchdistill"))
        self.variant = variant
        self.embed = nn.ModuleList()

    def build(self, student: Layers, teacher: Layers) -> None:
        layers = matched("ickd", student, teacher, maps=True)
        convolutions = [nn.Conv2d(s.shape[1], t.shape[1], 1, bias=False) for s, t in layers]
        self.embed = nn.ModuleList(nn.Sequential(c, nn.BatchNorm2d(c.out_channels)) for c in convolutions)
        self.embed.to(layers[0][0])

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        layers = matched("ickd", student, teacher, maps=True)
        if len(self.embed) != len(layers):
            raise InputError("ickd has convolutions whose size depends on the layers: call build first")
        total = torch.stack([ickd(embed(s), t) for embed, (s, t) in zip(self.embed, layers)]).sum()
        return total / len(layers[0][0]) if self.variant == "torchdistill" else total

    def extra_repr(self) -> str:
        return f"variant={self.variant}"
