"""Losses that match a student's feature maps [B, C, H, W] to the teacher's, layer by layer."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.losses.logits import kl
from kd.losses.maps import BatchNorm, LayerLoss, Layers, as_map, over_positions, pairs, pool, projection, same_size
from kd.losses.reduce import check
from kd.registry import losses

VARIANTS = ("code", "paper")


def regressor(student: Tensor, teacher: Tensor, relu: bool = True) -> nn.Sequential:
    """Convolution, batch normalisation and ReLU from the student's map shape to the teacher's.

    3x3 with stride 2 halves the map, transposed 4x4 with stride 2 doubles it, and a kernel of one more than
    the difference in size brings a map of the same or a larger size down without padding.
    """
    inputs, (outputs, *size) = student.shape[1], teacher.shape[1:]
    have = list(student.shape[2:])
    conv: nn.Module
    if have == [2 * side for side in size]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif [2 * side for side in have] == size:
        conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif have[0] >= size[0] and have[1] >= size[1]:
        conv = nn.Conv2d(inputs, outputs, (1 + have[0] - size[0], 1 + have[1] - size[1]))
    else:
        raise InputError(f"a student map of size {have} reaches the teacher's {size} only if as large, larger or half")
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=BatchNorm(outputs))
    if relu:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


@losses.register("fitnets")
class FitNets(LayerLoss):
    """mean (r(f_s) - f_t)^2 over all elements, r = ReLU(BN(conv)); summed over layers.

    Romero et al. 2015 (arXiv:1412.6550), eq. 3, where it is half the sum and trains the lower half of the student
    in a stage of its own; the CRD benchmark uses the mean, weight 100 on the second stage, beside cross-entropy.
    ``regressor=false`` compares tensors of equal shape as they are. Vectors [B, C] count as maps of one position.
    """

    resizes = True
    vectors = True

    def __init__(self, regressor: bool = True) -> None:
        super().__init__()
        self.regressor = regressor

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        if self.regressor:
            return regressor(student, teacher)
        if student.shape != teacher.shape:
            shapes = f"{list(student.shape[1:])} and {list(teacher.shape[1:])}"
            raise InputError(f"FitNets without a regressor needs equal shapes, got {shapes}")
        return nn.Identity()

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)

    def extra_repr(self) -> str:
        return "" if self.regressor else "regressor=False"


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
        if variant not in VARIANTS:
            raise unknown("variant", variant, VARIANTS)
        self.p, self.variant = p, variant

    def parts(self, student: Layers, teacher: Layers) -> list[Tensor]:
        """The scalars layer by layer, whose sum is the loss."""
        return [at(s, t, self.p, self.variant) for s, t in pairs("AT", student, teacher)]

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        return torch.stack(self.parts(student, teacher)).sum()

    def extra_repr(self) -> str:
        return f"p={self.p}" + (f", variant={self.variant}" if self.variant != "code" else "")


def cwd(student: Tensor, teacher: Tensor, T: float = 4.0) -> Tensor:
    """T^2 * KL of each channel's softmax over positions, mean over batch and channels, for maps of equal shape."""
    over_positions("CWD", student)
    return kl(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), T)


@losses.register("cwd")
class CWD(LayerLoss):
    """T^2 * KL(p_t || p_s), p a channel's softmax over positions; mean over channels, summed over layers.

    Shu et al. 2021 (arXiv:2011.13256), section 3; weight 50 on features, 3 on dense logits. Other channels are
    brought to the teacher's by a 1x1 convolution, larger maps pooled.
    """

    def __init__(self, T: float = 4.0) -> None:
        super().__init__()
        check("batchmean", T=T)
        self.T = T

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return cwd(student, teacher, self.T)

    def extra_repr(self) -> str:
        return f"T={self.T:g}"


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
        check("batchmean", eps=eps)
        self.eps = eps

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(student, teacher.shape[2:], mode="bilinear")
        return pkd(student, teacher, self.eps)


class Generator(nn.Module):
    """Masks a map and generates the teacher's from what is left: 3x3 convolution, ReLU, 3x3 convolution."""

    def __init__(self, student: Tensor, teacher: Tensor, ratio: float, mask: str) -> None:
        super().__init__()
        channels = teacher.shape[1]
        self.align = projection(student, teacher)
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.generate = nn.Sequential(first, nn.ReLU(), second)
        self.ratio, self.mask = ratio, mask

    def forward(self, x: Tensor) -> Tensor:
        x = self.align(x)
        if self.training:
            batch, channels, height, width = x.shape
            shape = (batch, channels, 1, 1) if self.mask == "channels" else (batch, 1, height, width)
            # drawn in float32 whatever x is, so that a seed means one mask
            x = x * (torch.rand(shape, device=x.device, dtype=torch.float32) >= self.ratio)
        return self.generate(x)


@losses.register("mgd")
class MGD(LayerLoss):
    """sum (G(masked f_s) - f_t)^2 / B, G two 3x3 convolutions; summed over layers.

    Yang et al. 2022 (arXiv:2205.01529). Classification masks 15 % of the channels (weight 7e-5 on
    ImageNet, 1.2e-3 on CIFAR-100), dense tasks 65 % of the positions (``mask=positions``, weight 2e-5). In training
    mode the mask is drawn anew at every call, from torch's generator. Larger maps are pooled.
    """

    MASKS = ("channels", "positions")

    def __init__(self, ratio: float = 0.15, mask: str = "channels") -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise InputError(f"ratio must lie in [0, 1), got {ratio}")
        if mask not in self.MASKS:
            raise unknown("mask", mask, self.MASKS)
        self.ratio, self.mask = ratio, mask

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        return Generator(student, teacher, self.ratio, self.mask)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().sum() / len(teacher)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio:g}, mask={self.mask}"


def srd(student: list[Tensor], teacher: list[Tensor], exponent: float = 4.0, T: float = 1.0) -> Tensor:
    """2 log sum |f_s - f_t|^exponent + KL(p_t || p_s) without T^2, for [features, logits] of both sides."""
    total = (student[0] - teacher[0]).abs().pow(exponent).sum()
    return 2 * total.clamp_min(torch.finfo(total.dtype).tiny).log() + kl(student[1], teacher[1], T) / T**2


@losses.register("srd")
class SRD(nn.Module):
    """2 log sum |N(W f_s) - N(f_t)|^a + KL(p_t || p_s) without T^2, N batch normalisation without scale and shift.

    Miles and Mikolajczyk 2024 (arXiv:2303.11098); each side is a list of two layers, [features, logits], where maps
    are pooled to vectors [B, C]. a = 4, T = 1, eps 1e-4 and weight 1 beside cross-entropy are the published
    ImageNet setting. At least two samples.
    """

    def __init__(self, exponent: float = 4.0, T: float = 1.0, eps: float = 1e-4) -> None:
        super().__init__()
        check("batchmean", exponent=exponent, T=T, eps=eps)
        if exponent < 1:
            raise InputError(f"exponent must be at least 1, got {exponent}")
        self.exponent, self.T, self.eps = exponent, T, eps
        self.project, self.norm = nn.Sequential(), nn.Sequential()

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        (f_s, _), (f_t, _) = self._sides(student, teacher)
        inputs, outputs = f_s.shape[1], f_t.shape[1]

        def norm() -> nn.Module:
            return BatchNorm(outputs, eps=self.eps, affine=False)

        self.project = nn.Sequential(nn.Conv2d(inputs, outputs, 1), norm()).to(f_s.device, f_s.dtype)
        self.norm = nn.Sequential(norm()).to(f_s.device, f_s.dtype)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        (f_s, z_s), (f_t, z_t) = self._sides(student, teacher)
        if not len(self.project):
            raise InputError("SRD: call build(student, teacher) with example tensors first")
        return srd([self.project(f_s), z_s], [self.norm(f_t), z_t], self.exponent, self.T)

    def _sides(self, student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        sides = []
        for side, given in (("student", student), ("teacher", teacher)):
            if isinstance(given, Tensor) or len(given) != 2 or given[1].ndim != 2:
                raise InputError(f"SRD needs two layers of the {side}: [features, logits [B, C]]")
            sides.append((pool(as_map("SRD", given[0], vectors=True), (1, 1)), given[1]))
        return sides

    def extra_repr(self) -> str:
        return f"exponent={self.exponent:g}, T={self.T:g}"
