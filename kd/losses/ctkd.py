"""CTKD: a learned temperature, trained against the student (Li et al. 2023, arXiv:2211.16231)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._checks import check_positive
from kd.losses._logits import divergence, logit_pair
from kd.registry import losses


def scale_gradient(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """The same values; the gradient multiplied by ``factor``, reversed where that is negative."""
    fixed = tensor.detach()
    return fixed + factor * (tensor - fixed)


def ctkd_temperature(theta: Tensor, t_start: float = 1.0, t_end: float = 20.0) -> Tensor:
    """T = t_start + t_end * sigmoid(theta), between t_start and t_start + t_end."""
    return t_start + t_end * theta.sigmoid()


def ctkd_lambda(epoch: float, loops: int = 10, lambda_max: float = 0.0, lambda_min: float = -1.0) -> float:
    """Factor on theta's gradient in ``epoch``, counted from 1: half a cosine from max at 0 to min at ``loops``."""
    progress = min(max(epoch, 0), loops) / loops
    return lambda_min + (1 + math.cos(math.pi * progress)) / 2 * (lambda_max - lambda_min)


def ctkd(student: Tensor, teacher: Tensor, T: Tensor) -> Tensor:
    """T^2 * KL(teacher || student) for a tensor T, with gradient through both softmaxes and the factor T^2."""
    log_p, log_q = F.log_softmax(teacher / T, dim=1), F.log_softmax(student / T, dim=1)
    return T**2 * divergence(log_q, log_p).mean()


@losses.register("ctkd")
class CTKD(nn.Module):
    """T^2 * KL(teacher || student) with T = t_start + t_end * sigmoid(theta), theta learned to make it larger.

    Logits [B, C]. Li et al. 2023 (arXiv:2211.16231), the global temperature: a gradient reversal makes T the
    student's adversary, increased over the first ``loops`` epochs (:func:`ctkd_lambda`), which :meth:`on_epoch`
    counts; until it is called the first epoch's factor holds. T starts at 15.6 and may fall to ``t_start``, so it is
    logged. Published weights on CIFAR-100: 0.1 * CE + 0.9 * this, or 9 with
    ``standardise``.
    """

    reversal: Tensor

    def __init__(
        self,
        t_start: float = 1.0,
        t_end: float = 20.0,
        loops: int = 10,
        lambda_max: float = 0.0,
        lambda_min: float = -1.0,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        check_positive(t_start=t_start, t_end=t_end, loops=loops)
        self.t_start, self.t_end, self.standardise = t_start, t_end, standardise
        self.schedule = (loops, lambda_max, lambda_min)
        self.theta = nn.Parameter(torch.ones(1))
        self.register_buffer("reversal", torch.tensor(0.0))
        self.on_epoch(0)

    def on_epoch(self, epoch: int) -> None:
        """Sets the strength of the reversal for ``epoch``, counted from 0 where the authors count from 1."""
        self.reversal.fill_(ctkd_lambda(epoch + 1, *self.schedule))

    def logged(self) -> dict[str, Tensor]:
        """The current temperature."""
        return {"T": ctkd_temperature(self.theta.detach(), self.t_start, self.t_end).squeeze()}

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = logit_pair("ctkd", student, teacher, self.standardise)
        theta = scale_gradient(self.theta, self.reversal).squeeze()
        return ctkd(student, teacher, ctkd_temperature(theta, self.t_start, self.t_end))

    def extra_repr(self) -> str:
        loops, lambda_max, lambda_min = self.schedule
        ramp = f"lambda={lambda_max:g}..{lambda_min:g} in {loops} epochs"
        options = f"t_start={self.t_start:g}, t_end={self.t_end:g}, {ramp}"
        return options + ", standardise" * self.standardise
