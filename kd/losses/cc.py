"""CC: correlation congruence (Peng et al. 2019, arXiv:1904.01802), as the benchmark runs it and with a kernel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._checks import VARIANTS, check_choice, check_positive
from kd.losses._pairs import Embeddings, Layers, vectors
from kd.registry import losses


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
        check_positive(gamma=gamma, order=order)
        check_choice("kernel", kernel, ("bilinear", "gaussian"))
        check_choice("variant", variant, VARIANTS)
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
