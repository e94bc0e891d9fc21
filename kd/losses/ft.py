"""FT: factor transfer (Kim et al. 2018, arXiv:1802.04977)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import VARIANTS, check_choice, check_positive
from kd.losses._maps import BatchNorm, Layers, pairs, same_size
from kd.losses.at import attention
from kd.registry import losses


def factor_transfer(student: Tensor, teacher: Tensor, p1: int = 2, p2: int = 1, variant: str = "code") -> Tensor:
    """mean |Q_s - Q_t| if p2 = 1, else mean (Q_s - Q_t)^p2, of factors [B, C, H, W]; the larger map is pooled.

    ``paper``: Q is the factor flattened to unit length. ``code``: Q is the unit-length map of mean_c f^p1, as in
    attention transfer.
    """
    student, teacher = same_size(student, teacher)
    if variant == "paper":
        difference = F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))
    else:
        difference = attention(student, p1) - attention(teacher, p1)
    return difference.abs().mean() if p2 == 1 else difference.pow(p2).mean()


def _encoder(inputs: int, factors: int, norm: type[nn.Module]) -> nn.Sequential:
    widths = ((inputs, inputs), (inputs, factors), (factors, factors))
    steps = ((nn.Conv2d(i, o, 3, padding=1), norm(o), nn.LeakyReLU(0.1)) for i, o in widths)
    return nn.Sequential(*(module for step in steps for module in step))


def _decoder(factors: int, outputs: int) -> nn.Sequential:
    widths = ((factors, factors), (factors, outputs), (outputs, outputs))
    steps = ((nn.ConvTranspose2d(i, o, 3, padding=1), nn.LeakyReLU(0.1)) for i, o in widths)
    return nn.Sequential(*(module for step in steps for module in step))


@losses.register("ft")
class FT(nn.Module):
    """mean |Q(translator(f_s)) - Q(paraphraser(f_t))|, Q of unit length; before that, the paraphraser's own error.

    Kim et al. 2018 (arXiv:1802.04977), section 3. While ``pretraining``, set by :meth:`on_epoch` in the first
    ``init_epochs`` epochs, it is ``reconstruction`` * mean (decoder(encoder(f_t)) - f_t)^2 and trains the
    paraphraser alone; afterwards the paraphraser is fixed. ``reconstruction`` undoes the published weight of
    200 (500 in the paper). ``variant=code`` averages squared channels as the CRD benchmark does, ``paper``
    compares whole factors; k is the factor's share of the teacher's channels. ``init_rate`` is the learning rate of
    those epochs as a share of the run's: published 0.01 of 0.05 for residual networks, which diverges at 0.05.
    """

    def __init__(
        self,
        k: float = 0.5,
        p1: int = 2,
        p2: int = 1,
        variant: str = "code",
        init_epochs: int = 30,
        reconstruction: float = 0.005,
        init_rate: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive(k=k, reconstruction=reconstruction)
        check_choice("variant", variant, VARIANTS)
        if p1 < 1 or (p2 != 1 and (p2 < 2 or p2 % 2)):
            raise InputError(f"p1 must be at least 1 and p2 be 1 or even, got p1={p1}, p2={p2}")
        if init_epochs < 0:
            raise InputError(f"init_epochs must be at least 0, got {init_epochs}")
        self.k, self.p1, self.p2, self.variant = k, p1, p2, variant
        if not 0 < init_rate < math.inf:
            raise InputError(f"init_rate must be a finite number above 0, got {init_rate}")
        self.init_epochs, self.reconstruction, self.init_rate = init_epochs, reconstruction, init_rate
        self.on_epoch(0)
        self.encoder, self.decoder, self.translator = (nn.Sequential() for _ in range(3))

    def build(self, student: Layers, teacher: Layers) -> None:
        f_s, f_t = self._maps(student, teacher)
        channels = f_t.shape[1]
        factors = max(int(self.k * channels), 1)
        self.encoder = _encoder(channels, factors, nn.Identity).to(f_t.device, f_t.dtype)
        self.decoder = _decoder(factors, channels).to(f_t.device, f_t.dtype)
        self.translator = _encoder(f_s.shape[1], factors, BatchNorm).to(f_s.device, f_s.dtype)

    def on_epoch(self, epoch: int) -> None:
        """Trains the paraphraser in the first ``init_epochs`` epochs, counted from 0."""
        self.pretraining = epoch < self.init_epochs

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        f_s, f_t = self._maps(student, teacher)
        if not len(self.encoder):
            raise InputError("FT: call build(student, teacher) with example tensors first")
        if self.pretraining:
            return self.reconstruction * F.mse_loss(self.decoder(self.encoder(f_t)), f_t)
        with torch.no_grad():
            factor = self.encoder(f_t)
        return factor_transfer(self.translator(f_s), factor, self.p1, self.p2, self.variant)

    def _maps(self, student: Layers, teacher: Layers) -> tuple[Tensor, Tensor]:
        both = pairs("FT", student, teacher)
        if len(both) != 1:
            raise InputError(f"FT compares one layer, got {len(both)}")
        return both[0]

    def extra_repr(self) -> str:
        return f"k={self.k:g}, variant={self.variant}, init_epochs={self.init_epochs}"
