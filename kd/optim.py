"""Optimisers and learning rate schedules; a schedule is a pure function of the progress of the run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kd.errors import InputError, unknown
from kd.registry import optimisers

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# matched against the last two parts of a parameter's name: a position table may be an nn.Embedding called pos_embed
NAMES = re.compile(
    r"(^|[._])(\w*tokens?|pos(ition)?_?emb(ed|eddings?)?|position_bias_table|temperature|logit_scale)(\.|$)"
)


def parameter_groups(module: nn.Module, decay_norm_bias: bool) -> list[dict[str, Any]]:
    """The trainable parameters as optimiser groups.

    If ``decay_norm_bias`` is false, those of :func:`undecayed` are in a group of their own with weight decay 0.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    bare = set() if decay_norm_bias else undecayed(module) & trained.keys()
    groups: list[dict[str, Any]] = [{"params": [p for name, p in trained.items() if name not in bare]}]
    if not bare:
        return groups
    groups.append({"params": [p for name, p in trained.items() if name in bare], "weight_decay": 0.0})
    return [group | {"name": name} for group, name in zip(groups, ("decay", "no_decay")) if group["params"]]


def undecayed(module: nn.Module) -> set[str]:
    """The names of the parameters without weight decay.

    These are parameters of at most one dimension, norms, tokens, position embeddings, and those that a timm network
    lists in ``no_weight_decay()``.
    """
    names = set()
    for prefix, inner in module.named_modules():
        start = f"{prefix}." if prefix else ""
        listed: Any = getattr(inner, "no_weight_decay", None)
        names |= {f"{start}{name}" for name in (listed() if callable(listed) else ())}
        for name, parameter in inner.named_parameters(recurse=False):
            path = ".".join(f"{start}{name}".split(".")[-2:])
            if parameter.ndim <= 1 or isinstance(inner, NORMS) or name == "bias" or NAMES.search(path):
                names.add(f"{start}{name}")
    return names


SCHEDULES = ("cosine", "multistep", "constant")


class Optim:
    """An optimiser and its learning rate schedule.

    Args:
        make: creates an optimiser from parameters or parameter groups, such as ``partial(torch.optim.SGD, lr=0.1)``.
        schedule: ``cosine`` (to 0; Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts),
            ``multistep`` or ``constant``.
        warmup: fraction of the run after pre-training over which the rate rises linearly from 0, in [0, 1).
        milestones: for ``multistep``, the fractions of the run after pre-training, in (0, 1], at which the rate is
            multiplied by ``gamma``; 150, 180 and 210 of 240 epochs are 0.625, 0.75 and 0.875.
        gamma: factor of the rate at each milestone.
        init: fraction of the run, at its start, for pre-training, in [0, 1): the rate is constant, and schedule and
            optimiser start after it. By default the pre-training epochs of the objective.
        init_lr: learning rate of pre-training; by default the optimiser's times the losses' ``init_rate``.
        decay_norm_bias: whether weight decay also applies to biases, norms, tokens and position embeddings; see
            :func:`undecayed`.

    Raises:
        InputError: an unknown schedule, a value out of range, or a decay_norm_bias that is not true or false.
    """

    def __init__(
        self,
        make: Callable[[Any], Optimizer],
        schedule: str = "cosine",
        warmup: float = 0.1,
        milestones: Sequence[float] = (0.625, 0.75, 0.875),
        gamma: float = 0.1,
        init: float | None = None,
        init_lr: float | None = None,
        decay_norm_bias: bool = True,
    ) -> None:
        if not isinstance(decay_norm_bias, bool):
            raise InputError(f"decay_norm_bias must be true or false, got {decay_norm_bias!r}")
        if schedule not in SCHEDULES:
            raise unknown("schedule", schedule, SCHEDULES)
        if not 0 <= warmup < 1 or not 0 <= (init or 0) < 1 or not all(0 < m <= 1 for m in milestones):
            raise InputError(
                f"warmup and init must lie in [0, 1), milestones in (0, 1], got {warmup=}, {init=}, {milestones=}"
            )
        self.make, self.schedule, self.warmup = make, schedule, warmup
        if init_lr is not None and not 0 < init_lr < math.inf:
            raise InputError(f"init_lr must be a finite number above 0, got {init_lr}")
        self.milestones, self.gamma, self.init, self.init_lr = tuple(milestones), gamma, init, init_lr
        self.decay_norm_bias = decay_norm_bias

    def factor(self, step: int, total: int, begin: int | None = None) -> float:
        """The factor of the learning rate at ``step`` of ``total``; the first ``begin`` steps are pre-training."""
        begin = round((self.init or 0) * total) if begin is None else begin
        if step < begin:
            return 1.0
        remaining = max(total - begin, 1)
        done = (step - begin) / remaining  # counted in whole steps, so that milestones are exact
        if done < self.warmup:
            return min((done + 1 / remaining) / self.warmup, 1.0)
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * min((done - self.warmup) / (1 - self.warmup), 1))) / 2
        if self.schedule == "multistep":
            return self.gamma ** sum(done >= m for m in self.milestones)
        return 1.0

    def configure(
        self, module: nn.Module, total: int, begin: int | None = None, init_rate: float = 1.0
    ) -> dict[str, Any]:
        """The return value of Lightning's ``configure_optimizers``, for all trainable parameters of ``module``.

        Args:
            module: the module to train.
            total: number of optimiser steps of the run.
            begin: number of steps of pre-training; by default ``init`` times ``total``.
            init_rate: factor of the learning rate in pre-training, unless ``init_lr`` is set.
        """
        optimizer = self.make(parameter_groups(module, self.decay_norm_bias))
        begin = round((self.init or 0) * total) if begin is None else begin
        if self.init_lr is not None:
            init_rate = self.init_lr / optimizer.param_groups[0]["lr"]
        scheduler = LambdaLR(optimizer, lambda step: init_rate if step < begin else self.factor(step, total, begin))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "optim/lr"},
        }

    def describe(self, module: nn.Module) -> str:
        """Which parameters have weight decay, as text."""
        if self.decay_norm_bias:
            return "weight decay on all parameters (decay_norm_bias=true)"
        bare = sum(len(group["params"]) for group in parameter_groups(module, False) if "weight_decay" in group)
        return f"no weight decay on {bare} biases, norms, tokens and positions (decay_norm_bias=false)"


def _check_rate(lr: float, weight_decay: float) -> None:
    if not 0 < lr < math.inf:
        raise InputError(f"lr must be a finite number above 0, got {lr}")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay must be a finite number of at least 0, got {weight_decay}")


@optimisers.register("sgd")
def sgd(
    parameters: Iterable[nn.Parameter],
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    _check_rate(lr, weight_decay)
    # foreach is faster and equal bit for bit
    return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, foreach=True)


@optimisers.register("adamw", decay_norm_bias=False)  # as in DeiT and timm
def adamw(
    parameters: Iterable[nn.Parameter],
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    betas: Sequence[float] = (0.9, 0.999),
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    _check_rate(lr, weight_decay)
    return torch.optim.AdamW(parameters, lr, (betas[0], betas[1]), weight_decay=weight_decay, foreach=True)


@optimisers.register("dot")
class DOT(Optimizer):
    """SGD with momentum ``momentum - delta`` for the task loss and ``momentum + delta`` for the distillation loss.

    v_task = (m - d) v_task + g_task + weight_decay * p, v_kd = (m + d) v_kd + g_kd, p = p - lr (v_task + v_kd). As in
    the authors' code, a parameter with only one of the two gradients has momentum m and weight decay; without a teacher
    it is therefore SGD. Published: delta 0.075 on CIFAR-100, 0.09 on ImageNet.

    Args:
        parameters: the parameters to train, or groups of them.
        lr: learning rate.
        momentum: m.
        delta: d, at most m and below 1 - m.
        weight_decay: weight decay, added to the gradient.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 0.05,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 5e-4,
    ) -> None:
        _check_rate(lr, weight_decay)
        if not (0 <= delta <= momentum and momentum + delta < 1):
            raise InputError(f"momentum - delta and momentum + delta must lie in [0, 1), got {momentum=}, {delta=}")
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})
        self.apart: dict[nn.Parameter, list[Tensor | None]] = {}

    def take(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Sequence[Tensor | None]]) -> None:
        """Adds the gradients of task and distillation, None for a missing one, and sets ``grad`` to their sum."""
        for parameter, *pair in zip(parameters, *gradients, strict=True):
            before = self.apart.get(parameter, [None, None])
            self.apart[parameter] = [_sum(old, new) for old, new in zip(before, pair)]
            parameter.grad = _sum(*self.apart[parameter])

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.apart.clear()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, group)
        return loss

    def _update(self, parameter: nn.Parameter, group: Mapping[str, float]) -> None:
        task, distillation = self.apart.get(parameter, [parameter.grad, None])
        both = task is not None and distillation is not None
        delta = group["delta"] if both else 0.0
        decayed = parameter * group["weight_decay"]
        moves = []
        for kind, gradient, momentum in (
            ("task", task, group["momentum"] - delta),
            ("distillation", distillation, group["momentum"] + delta),
        ):
            if gradient is None:
                continue
            gradient = gradient + decayed if kind == "task" or not both else gradient
            state, name = self.state[parameter], f"{kind}_momentum"
            state[name] = gradient.clone() if name not in state else state[name].mul_(momentum).add_(gradient)
            moves.append(state[name])
        for move in moves:
            parameter.add_(move, alpha=-group["lr"])


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
