"""Losses with their own model of how a student's maps [B, C, H, W] should carry what the teacher's do.

``vid`` predicts the teacher's features with a variance, ``ab`` and ``ofd`` compare pre-activations around the
ReLU's boundary, ``ft`` compares compressed factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.losses.features import VARIANTS, attention, regressor
from kd.losses.maps import BatchNorm, LayerLoss, Layers, conv_bn, pairs, same_size
from kd.losses.norms import norm_named, norms_of_stages
from kd.losses.reduce import check
from kd.registry import losses


def vid(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """mean ((mu - f_t)^2 / var + log var) / 2, var [C]: -log N(f_t; mu, var) without its constant."""
    variance = variance.view(-1, 1, 1)
    return (((mean - teacher).square() / variance + variance.log()) / 2).mean()


@losses.register("vid")
class VID(LayerLoss):
    """mean ((mu(f_s) - f_t)^2 / var + log var) / 2, mu three 1x1 convolutions, var learned per channel; layers summed.

    Ahn et al. 2019 (arXiv:1904.05835): a bound on the mutual information; weight 1. The mean is taken
    over all elements, var = log(1 + e^a) + eps starts at ``init_variance``, and the hidden layers have ``hidden``
    channels, by default the teacher's. Larger maps are pooled first.
    """

    vectors = True

    def __init__(self, init_variance: float = 5.0, eps: float = 1e-5, hidden: int | None = None) -> None:
        super().__init__()
        check("batchmean", init_variance=init_variance, eps=eps)
        if init_variance <= eps:
            raise InputError(f"init_variance must be above eps, got {init_variance} and {eps}")
        if hidden is not None and hidden < 1:
            raise InputError(f"hidden must be at least 1, got {hidden}")
        self.init_variance, self.eps, self.hidden = init_variance, eps, hidden
        self.scales = nn.ParameterList()

    def build(self, student: Layers, teacher: Layers) -> None:
        super().build(student, teacher)
        start = math.log(math.expm1(self.init_variance - self.eps))
        both = self.pairs(student, teacher)
        self.scales = nn.ParameterList(torch.full_like(t[0, :, 0, 0], start) for _, t in both)

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        inputs, outputs = student.shape[1], teacher.shape[1]
        hidden = self.hidden or outputs
        widths = ((inputs, hidden), (hidden, hidden), (hidden, outputs))
        first, second, last = (nn.Conv2d(i, o, 1, bias=False) for i, o in widths)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return vid(student, teacher, F.softplus(self.scales[layer]) + self.eps)

    def extra_repr(self) -> str:
        return f"init_variance={self.init_variance:g}" + (f", hidden={self.hidden}" if self.hidden else "")


def ab(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """sum of max(m + s, 0)^2 where the teacher's pre-activation is <= 0 and max(m - s, 0)^2 where it is above."""
    return F.relu(margin + torch.where(teacher > 0, -student, student)).square().sum()


@losses.register("ab")
class AB(LayerLoss):
    """scale * 2^(i-n) * sum max(m -+ s, 0)^2 / B, + where the teacher is off, - where on; layers i = 1..n summed.

    Heo et al. 2019 (arXiv:1811.03233), on pre-activations (``stage2.pre``). Published as a first stage of 30
    epochs on its own, after which it stops, weight 1; ``scale`` 3/1000 is the authors'. A layer of the teacher's
    shape is compared directly, any other through a convolution with batch normalisation.
    """

    resizes = True
    vectors = True

    def __init__(self, margin: float = 1.0, scale: float = 0.003) -> None:
        super().__init__()
        check("batchmean", margin=margin, scale=scale)
        self.margin, self.scale = margin, scale

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        same = student.shape[1:] == teacher.shape[1:]
        return nn.Identity() if same else regressor(student, teacher, relu=False)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        depth = 2.0 ** (layer + 1 - len(self.connectors))
        return self.scale * depth * ab(student, teacher, self.margin) / len(teacher)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"


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

    Kim et al. 2018 (arXiv:1802.04977), section 3. While ``pretraining``, which :meth:`on_epoch` sets in the first
    ``init_epochs`` epochs, it is ``reconstruction`` * mean (decoder(encoder(f_t)) - f_t)^2 and trains the
    paraphraser alone; afterwards the paraphraser stands still. ``reconstruction`` undoes the published weight of
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
        check("batchmean", k=k, reconstruction=reconstruction)
        if variant not in VARIANTS:
            raise unknown("variant", variant, VARIANTS)
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


def ofd_margin(scale: Tensor, shift: Tensor) -> Tensor:
    """E[x | x < 0] per channel for x ~ N(shift, scale^2): a batch norm's output where its ReLU is off.

    -3 |scale| where x < 0 has a probability of 0.001 or less.
    """
    spread = scale.abs()
    ratio = shift / spread
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(below > 0.001, shift - spread * density / below, -3 * spread)


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """sum (f_s - t)^2 where f_s > t or t > 0, t = max(f_t, margin), of pre-activations; ``margin`` is [C]."""
    target = torch.maximum(teacher, margin.view(-1, 1, 1))
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0.0).square().sum()


@losses.register("ofd")
class OFD(LayerLoss):
    """2^(i-n) * sum (BN(conv(s)) - t)^2 / B where it is above t or t > 0, t = max(f_t, m); layers i = 1..n summed.

    Heo et al. 2019 (arXiv:1904.01866), section 3, on pre-activations (``stage2.pre``); weight 1e-3 on CIFAR-100,
    1e-4 on ImageNet. m is the mean of the teacher's negative responses, from the batch norms before the tapped
    ReLUs: ``batch_norms`` names them, else each stage's last one is found. Larger maps are pooled. The authors run
    the teacher with batch statistics, kd with its trained ones.
    """

    def __init__(self, batch_norms: Sequence[str] | None = None) -> None:
        super().__init__()
        self.batch_norms = None if batch_norms is None else list(batch_norms)
        self.margins: list[Tensor] = []

    def attach(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Reads the teacher's margins."""
        if teacher is None:
            raise InputError("OFD reads the teacher's batch norms, and there is no single teacher network")
        named = self.batch_norms
        norms = norms_of_stages(teacher) if named is None else [norm_named(teacher, name) for name in named]
        self.margins = [ofd_margin(norm.weight.detach(), norm.bias.detach()) for norm in norms]

    def build(self, student: Layers, teacher: Layers) -> None:
        channels = [t.shape[1] for _, t in self.pairs(student, teacher)]
        first = self._first_margin(channels)
        super().build(student, teacher)
        for layer, (_, t) in enumerate(self.pairs(student, teacher)):
            self.register_buffer(f"margin{layer}", self.margins[first + layer].to(t.device, t.dtype, copy=True))

    def _first_margin(self, channels: list[int]) -> int:
        """Where in ``margins`` those of the tapped layers begin: consecutive stages of the same channels."""
        if not self.margins:
            raise InputError("OFD: call attach(student, teacher) with the networks before build")
        have = [len(margin) for margin in self.margins]
        starts = range(len(have) - len(channels) + 1)
        fits = [start for start in starts if have[start : start + len(channels)] == channels]
        if len(fits) != 1 or (self.batch_norms is not None and have != channels):
            wanted = f"the layers have {channels} channels, the batch norms found {have}"
            raise InputError(f"OFD: name the teacher's batch norms before these ReLUs in batch_norms; {wanted}")
        return fits[0]

    def connect(self, student: Tensor, teacher: Tensor) -> nn.Module:
        conv, norm = conv_bn(student.shape[1], teacher.shape[1], relu=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        return nn.Sequential(conv, norm)

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        depth = 2.0 ** (layer + 1 - len(self.connectors))
        return depth * ofd(student, teacher, self.get_buffer(f"margin{layer}")) / len(teacher)

    def extra_repr(self) -> str:
        return "" if self.batch_norms is None else f"batch_norms={self.batch_norms}"
