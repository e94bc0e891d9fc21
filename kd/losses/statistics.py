"""Second-order statistics of maps: Gram matrices of channels, kernel means and singular vectors.

ICKD relates the channels of a map with each other, FSP those of consecutive layers, NST compares the
distributions of channels by a kernel, KD-SVD the leading singular vectors of consecutive layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.losses.maps import projection
from kd.losses.reduce import check
from kd.losses.relations import Layers, matched
from kd.registry import losses

Pool = Callable[[Tensor, tuple[int, int]], Tensor]


def _same_size(a: Tensor, b: Tensor, pool: Pool = F.adaptive_avg_pool2d) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of their sizes."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a, b = (x if x.shape[2:] == size else pool(x, size) for x in (a, b))
    return a, b


def _chain(name: str, student: Layers, teacher: Layers) -> list[tuple[Tensor, Tensor]]:
    """The layers of a method that relates consecutive ones: two at least."""
    layers = matched(name, student, teacher, maps=True)
    if len(layers) < 2:
        raise InputError(f"{name} relates consecutive layers and needs a list of at least two, got {len(layers)}")
    return layers


class Chained(nn.Module):
    """Relates consecutive layers. The methods are defined for equal channels; where they differ, the student's map
    passes a trained 1x1 convolution first, which ``build`` makes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connectors = nn.ModuleList()

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        layers = _chain(type(self).__name__, student, teacher)
        self.connectors = nn.ModuleList(projection(s, t) for s, t in layers)
        self.to(layers[0][0].device, layers[0][0].dtype)

    def layers(self, student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The layers side by side, with equal channels."""
        name = type(self).__name__
        layers = _chain(name, student, teacher)
        if len(self.connectors) == len(layers):
            layers = [(connect(s), t) for connect, (s, t) in zip(self.connectors, layers)]
        for s, t in layers:
            if s.shape[1] != t.shape[1]:
                channels = f"{s.shape[1]} and {t.shape[1]}"
                raise InputError(f"{name} needs equal channels, got {channels}: call build with example maps first")
        return layers


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
        if variant not in ("code", "torchdistill"):
            raise unknown("variant", variant, ("code", "torchdistill"))
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


def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor], variant: str = "code") -> Tensor:
    """(G_s - G_t)^2 summed over consecutive layers [B, C, H, W], G_dc = mean over positions of above_d below_c.

    ``code`` pools the larger map by its average and takes the mean over B, d and c; ``paper`` pools by the
    maximum, sums over d and c and takes the mean over B.
    """
    parts = [(_flow(*s, variant) - _flow(*t, variant)).square() for s, t in zip(pairwise(student), pairwise(teacher))]
    return torch.stack([part.sum((1, 2)).mean() if variant == "paper" else part.mean() for part in parts]).sum()


def _flow(below: Tensor, above: Tensor, variant: str) -> Tensor:
    below, above = _same_size(below, above, F.adaptive_max_pool2d if variant == "paper" else F.adaptive_avg_pool2d)
    return above.flatten(2) @ below.flatten(2).mT / below[0, 0].numel()


@losses.register("fsp")
class FSP(Chained):
    """mean (G_s - G_t)^2 of the flow G = <above_d, below_c> / HW between consecutive layers, summed over pairs.

    A list of at least two maps [B, C, H, W] of each side, of equal channels in the paper (see :class:`Chained`).
    Yim et al. 2017 (CVPR), eq. 1 and 2, in which it is a stage of its own before training. ``variant=code`` is
    RepDistiller's (average pooling, means), weight 50; ``paper`` pools by the maximum and takes the squared
    Frobenius norm.
    """

    def __init__(self, variant: str = "code") -> None:
        super().__init__()
        if variant not in ("code", "paper"):
            raise unknown("variant", variant, ("code", "paper"))
        self.variant = variant

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        s, t = zip(*self.layers(student, teacher))
        return fsp(s, t, self.variant)

    def extra_repr(self) -> str:
        return f"variant={self.variant}"


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels of maps [B, C, H, W] by the kernel k(x, y) = <x, y>^2.

    The channels are vectors of unit length over positions; mean k(t, t) + mean k(s, s) - 2 mean k(s, t).
    """
    s, t = (F.normalize(maps.flatten(2), dim=2) for maps in _same_size(student, teacher))
    if s.shape[2] < max(s.shape[1], t.shape[1]):
        # the same number by the second moments of positions: fewer numbers here, and nothing cancels
        return (_moments(s) - _moments(t)).square().sum((1, 2)).mean()
    return _kernel_mean(t, t) + _kernel_mean(s, s) - 2 * _kernel_mean(s, t)


def _moments(channels: Tensor) -> Tensor:
    return channels.mT @ channels / channels.shape[1]


def _kernel_mean(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).square().mean()


@losses.register("nst")
class NST(nn.Module):
    """mean k(t,t) + mean k(s,s) - 2 mean k(s,t), k(x,y) = <x,y>^2 of channels of unit length, summed over layers.

    Maps [B, C, H, W] of any channels, the larger one pooled by its average; one layer or a list of them. Huang
    and Wang 2017, arXiv:1707.01219, with the polynomial kernel (d = 2, c = 0); weight 50. Takes memory for B C^2
    or B (HW)^2 numbers, whichever is smaller.
    """

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        return torch.stack([nst(s, t) for s, t in matched("nst", student, teacher, maps=True)]).sum()


def right_singular(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Singular values [B, r] and the ``count`` leading right vectors [B, C, count] of maps [B, C, H, W] as HW x C.

    The vectors carry the first-order gradient dv_i = sum_j v_j (v_j' dA v_i) / (l_i - l_j), A = F'F with
    eigenvalues l. Differences below 1e-6 of the largest eigenvalue count as none, so that the gradient is
    finite where singular values coincide and 0 where a map is 0. The values are constants.
    """
    matrix = maps.flatten(2).mT
    with torch.no_grad():
        eigenvalues, basis = _eigen(matrix)
        leading = basis[..., :count]
        scale = eigenvalues[:, :1, None].clamp_min(torch.finfo(maps.dtype).tiny)
        share = eigenvalues[:, :, None] / scale
        gaps = share[:, :count].mT - share
    applied = matrix.mT @ (matrix @ leading)
    change = (applied - applied.detach()) / scale  # 0, with the gradient of A v
    inside = basis.mT @ change
    vectors = leading + basis @ (_inverse(gaps) * inside)
    if basis.shape[2] < basis.shape[1]:  # directions without a singular value
        vectors = vectors + (change - basis @ inside) * _inverse(share[:, :count].mT)
    return eigenvalues.sqrt(), vectors


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of F'F [B, r], falling, and vectors [B, C, r], from the smaller of F'F and FF'.

    An order of magnitude faster than the singular value decomposition, and exact enough for leading vectors.
    """
    wide = matrix.shape[1] < matrix.shape[2]
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    values, vectors = values.flip(1).clamp_min(0), vectors.flip(2)
    return values, F.normalize(matrix.mT @ vectors, dim=1) if wide else vectors


def _inverse(gaps: Tensor) -> Tensor:
    return gaps / (gaps.square() + 1e-12)


def kdsvd(student: Sequence[Tensor], teacher: Sequence[Tensor], k: int = 1) -> Tensor:
    """sum (R_s - R_t)^2 / B over consecutive layers, R = exp(-d^2 / 8) of all component differences d.

    The components are those of the k leading right singular vectors of either layer, C x C' x k differences.
    """
    layers = [_aligned(s, t, k) for s, t in zip(student, teacher)]
    parts = [
        (_radial(s_below, s_above) - _radial(t_below, t_above)).square().sum()
        for (s_below, t_below), (s_above, t_above) in pairwise(layers)
    ]
    return torch.stack(parts).sum() / len(student[0])


def _radial(below: Tensor, above: Tensor) -> Tensor:
    return (-(above.unsqueeze(2) - below.unsqueeze(1)).square() / 8).exp()


def _aligned(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The teacher's k leading vectors and the student's most like them, scaled by the teacher's values."""
    with torch.no_grad():
        values, target = right_singular(teacher, k)
        target = target * torch.where(target.sum(1, keepdim=True) < 0, -1.0, 1.0).to(target)
        weights = F.normalize(values[:, :k], dim=1).unsqueeze(1)
    _, found = right_singular(student, k + 3)
    cosines = found.detach().mT @ target
    best = cosines.abs().argmax(1, keepdim=True)
    signs = torch.where(cosines.gather(1, best) < 0, -1.0, 1.0).to(target)
    found = found.gather(2, best.expand(-1, found.shape[1], -1)) * signs
    return found * weights, target * weights


@losses.register("kdsvd")
class KDSVD(Chained):
    """sum (R_s - R_t)^2 / B, R = exp(-d^2 / 8) of differences between k singular vectors of consecutive layers.

    A list of at least two maps [B, C, H, W] of each side, of equal channels in the paper (see :class:`Chained`);
    sizes may differ. Lee, Kim and Song 2018 (ECCV), in RepDistiller's form: right singular vectors of HW x C, the
    student's chosen out of its k + 3 leading ones; weight 1. A singular vector has no sign of its own: the teacher's
    are turned so that their entries have a positive sum, which makes the value independent of the solver. The solver
    makes the host wait for the device.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        check("batchmean", k=k)
        self.k = k

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        layers = self.layers(student, teacher)
        rank = min(min(x.shape[1], x[0, 0].numel()) for layer in layers for x in layer)
        if rank < self.k:
            raise InputError(f"kdsvd with k={self.k} needs {self.k} singular vectors, but a layer has only {rank}")
        s, t = zip(*layers)
        return kdsvd(s, t, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
