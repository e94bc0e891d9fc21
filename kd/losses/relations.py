"""Relations between the samples of a batch: SP, CC, RKD and PKT.

A relation between samples has the same size on both sides whatever the widths of the layers, so that most of
these losses train nothing besides the student.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.losses.reduce import check
from kd.registry import losses

Layers = Tensor | list[Tensor]


def matched(name: str, student: Layers, teacher: Layers, maps: bool = False) -> list[tuple[Tensor, Tensor]]:
    """The matching layers of both sides, with equal batches; with ``maps`` all must be [B, C, H, W].

    Raises:
        InputError: lists of unequal length, unequal batches, or tensors of another kind.
    """
    sides = [[side] if isinstance(side, Tensor) else list(side) for side in (student, teacher)]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise InputError(f"{name} needs as many student as teacher layers, got {len(sides[0])} and {len(sides[1])}")
    for s, t in zip(*sides):
        shapes = f"got {list(s.shape)} and {list(t.shape)}"
        if maps and not s.ndim == t.ndim == 4:
            raise InputError(f"{name} needs maps [B, C, H, W], {shapes}")
        if s.ndim < 2 or t.ndim < 2 or s.shape[0] != t.shape[0]:
            raise InputError(f"{name} needs features [B, ...] of one batch from both networks, {shapes}")
    return list(zip(*sides))


def vectors(name: str, student: Layers, teacher: Layers, least: int = 1) -> tuple[Tensor, Tensor]:
    """One layer of each side as vectors [B, D], flattened as in the published code; at least ``least`` samples."""
    if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
        raise InputError(f"{name} compares one student with one teacher layer, not lists of them")
    ((s, t),) = matched(name, student, teacher)
    if len(s) < least:
        raise InputError(f"{name} relates samples and needs a batch of at least {least}, got {len(s)}")
    return s.flatten(1), t.flatten(1)


class Embeddings(nn.Module):
    """A trained linear map to ``dim`` dimensions for either network, created by ``build``."""

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        check("batchmean", dim=dim)
        self.name, self.dim = name, dim
        self.student: nn.Module | None = None
        self.teacher: nn.Module | None = None

    def build(self, student: Layers, teacher: Layers) -> None:
        s, t = vectors(self.name, student, teacher)
        self.student = nn.Linear(s.shape[1], self.dim).to(s)
        self.teacher = nn.Linear(t.shape[1], self.dim).to(t)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.student is None or self.teacher is None:
            raise InputError(f"{self.name} has embeddings whose size depends on the layers: call build first")
        return self.student(student), self.teacher(teacher)


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """sum (G_t - G_s)^2 / B^2 with G = F F' of features F [B, ...], its rows of unit length."""
    return F.mse_loss(_similarity(student), _similarity(teacher))


def _similarity(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


@losses.register("sp")
class SP(nn.Module):
    """sum (G_t - G_s)^2 / B^2, G = F F' with rows of unit length, summed over layers.

    Features [B, ...] of any widths, one layer or a list of them. Tung and Mori 2019, arXiv:1907.09682,
    section 3; weight 3000 on the last map. torchdistill's port divides the rows by their L1 norm, which is not
    the paper's.
    """

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        return torch.stack([sp(s, t) for s, t in matched("sp", student, teacher)]).sum()


def cc(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over b of sum_k d_b,k d_(b+1),k with d = |student - teacher|, of embeddings [B, D], B > 1."""
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()


@losses.register("cc")
class CC(nn.Module):
    """mean over consecutive samples of sum_k d_b,k d_(b+1),k, d = |student - teacher| of linear embeddings.

    The code of the authors of Peng et al. 2019 (arXiv:1904.01802) as published with RepDistiller, weight 0.02;
    the paper's own equation compares kernel matrices: see ``cc_kernel``. Features [B, ...] are embedded in
    ``dim`` dimensions by one trained linear map for either network; the loss depends on the order of the batch.
    """

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.embed = Embeddings("cc", dim)

    def build(self, student: Layers, teacher: Layers) -> None:
        self.embed.build(student, teacher)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return cc(*self.embed(*vectors("cc", student, teacher, least=2)))

    def extra_repr(self) -> str:
        return f"dim={self.embed.dim}"


def cc_kernel(
    student: Tensor,
    teacher: Tensor,
    kernel: str = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
    variant: str = "code",
) -> Tensor:
    """||C_s - C_t|| / B^2 of the kernel matrices of embeddings [B, D]; ``paper`` squares the Frobenius norm.

    ``bilinear``: C_ij = <f_i, f_j>. ``gaussian``: the Taylor sum of exp(-gamma |f_i - f_j|^2) for unit vectors,
    exp(-2 gamma) * sum_(p <= order) (2 gamma)^p / p! <f_i, f_j>^p.
    """
    difference = _kernel(student, kernel, gamma, order) - _kernel(teacher, kernel, gamma, order)
    if variant == "paper":
        return difference.square().mean()
    return torch.linalg.vector_norm(difference) / difference.numel()


def _kernel(features: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    products = features @ features.T
    if kernel == "bilinear":
        return products
    total = torch.ones_like(products)
    for p in range(order, 0, -1):  # Horner's scheme
        total = 1 + total * products * (2 * gamma / p)
    return math.exp(-2 * gamma) * total


@losses.register("cc_kernel")
class CCKernel(nn.Module):
    """||C_s - C_t||_F / B^2 of kernel matrices C_ij = k(f_i, f_j) of linear embeddings f.

    Peng et al. 2019, arXiv:1904.01802, section 3. ``variant=code`` is torchdistill's un-squared norm (weight
    0.003), ``paper`` squares it. Features [B, ...] are embedded in ``dim`` dimensions; for the Gaussian kernel
    the embeddings have unit length, which its Taylor sum presumes.
    """

    def __init__(
        self, kernel: str = "gaussian", gamma: float = 0.4, order: int = 2, dim: int = 128, variant: str = "code"
    ) -> None:
        super().__init__()
        check("batchmean", gamma=gamma, order=order)
        if kernel not in ("bilinear", "gaussian"):
            raise unknown("kernel", kernel, ("bilinear", "gaussian"))
        if variant not in ("code", "paper"):
            raise unknown("variant", variant, ("code", "paper"))
        self.kernel, self.gamma, self.order, self.variant = kernel, gamma, order, variant
        self.embed = Embeddings("cc_kernel", dim)

    def build(self, student: Layers, teacher: Layers) -> None:
        self.embed.build(student, teacher)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = self.embed(*vectors("cc_kernel", student, teacher))
        if self.kernel == "gaussian":
            s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
        return cc_kernel(s, t, self.kernel, self.gamma, self.order, self.variant)

    def extra_repr(self) -> str:
        shape = f", gamma={self.gamma:g}, order={self.order}" if self.kernel == "gaussian" else ""
        return f"{self.kernel}{shape}, dim={self.embed.dim}, variant={self.variant}"


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over [B, B] of Huber(d_s - d_t), d the distances in units of their mean, of vectors [B, D], B > 1."""
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def _distances(x: Tensor) -> Tensor:
    # not by way of |x|^2 + |y|^2 - 2xy, which cancels in single precision where samples are close
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-6)
    distances = distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    return distances * (len(x) * (len(x) - 1) / distances.sum())


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over [B, B, B] of Huber(psi_s - psi_t), psi_ijk the cosine at x_i between x_j and x_k."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _cosines(x: Tensor) -> Tensor:
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return directions @ directions.mT


@losses.register("rkd")
class RKD(nn.Module):
    """distance * Huber(d_s - d_t) + angle * Huber(psi_s - psi_t), d distances over their mean, psi cosines at x_i.

    Park et al. 2019, arXiv:1904.05068, section 3.2. Vectors [B, D] of any widths, B > 1; both parts are 0 for
    B = 2. Means over B^2 and B^3: the angles take memory for B^3 numbers. 25 and 50 are the benchmark's weights,
    for a term of weight 1; mmrazor normalises the vectors first, RepDistiller, mdistiller and torchdistill do not.
    """

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        for name, value in (("distance", distance), ("angle", angle)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0, got {value}")
        if distance == angle == 0:
            raise InputError("distance and angle must not both be 0")
        self.distance, self.angle = distance, angle

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = vectors("rkd", student, teacher, least=2)
        parts = ((self.distance, rkd_distance), (self.angle, rkd_angle))
        return torch.stack([weight * part(s, t) for weight, part in parts if weight]).sum()

    def extra_repr(self) -> str:
        return f"distance={self.distance:g}, angle={self.angle:g}"


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """mean over [B, B] of P_t log((P_t + eps) / (P_s + eps)) of vectors [B, D].

    P is the cosine kernel (cos + 1) / 2 between samples, its rows summing to 1, diagonal included.
    """
    p, q = _affinities(teacher, eps), _affinities(student, eps)
    return (p * torch.log1p((p - q) / (q + eps))).mean()


def _affinities(x: Tensor, eps: float) -> Tensor:
    unit = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


@losses.register("pkt")
class PKT(nn.Module):
    """mean over B^2 of P_t log(P_t / P_s), P_ij the cosine similarity of samples, (cos + 1) / 2 with rows summing to 1.

    Vectors [B, D] of any widths. Passalis and Tefas 2018, arXiv:1803.10837, section 3, in the authors' code;
    weight 30000 because of the mean over B^2.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt(*vectors("pkt", student, teacher))
