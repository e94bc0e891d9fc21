"""SemCKD: learned attention over pairs of layers (Chen et al. 2021, arXiv:2012.03236)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._maps import Layers, as_map, conv_bn, same_size
from kd.registry import losses


def semckd(weights: Tensor, student: Sequence[Sequence[Tensor]], teacher: Sequence[Sequence[Tensor]]) -> Tensor:
    """sum_ij w_bij * mean (v_s_ij - v_t_ij)^2 over each sample, / (B * n_s), for attention w [B, n_s, n_t]."""
    errors = [
        torch.stack([(s - t).square().flatten(1).mean(1) for s, t in zip(*rows)], 1) for rows in zip(student, teacher)
    ]
    return (weights * torch.stack(errors, 1)).sum() / weights[:, :, 0].numel()


class Embedding(nn.Module):
    """Unit vectors [B, D / 4] out of a layer's inner products between the samples [B, B], zero-padded to D columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        outputs = max(columns // 4, 1)
        self.layers = nn.Sequential(nn.Linear(columns, 2 * outputs), nn.ReLU(), nn.Linear(2 * outputs, outputs))

    def forward(self, features: Tensor) -> Tensor:
        flat = features.flatten(1)
        if len(flat) > self.columns:
            raise InputError(f"SemCKD was built for batches of up to {self.columns}, got {len(flat)}: set batch_size")
        return F.normalize(self.layers(F.pad(flat @ flat.T, (0, self.columns - len(flat)))))


@losses.register("semckd")
class SemCKD(nn.Module):
    """sum_ij w_ij * mean (v_ij(f_s_i) - f_t_j)^2 / n_s, w_i the attention of student layer i to all teacher layers.

    Chen et al. 2021 (arXiv:2012.03236); weight 400. Any number of layers on either side. w is the softmax
    over j of <query_i, key_j> / T, both learned from each layer's inner products between the batch's samples, so
    that ``batch_size`` must be at least the training's; smaller batches are zero-padded. v_ij are three
    convolutions; the larger map of a pair is pooled.
    """

    any_layers = True

    def __init__(self, batch_size: int = 64, T: float = 1.0) -> None:
        super().__init__()
        check_positive(T=T)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.T = batch_size, T
        self.queries, self.keys, self.regressors = (nn.ModuleList() for _ in range(3))

    def build(self, student: Layers, teacher: Layers) -> None:
        f_s, f_t = _maps(student), _maps(teacher)
        self.queries = nn.ModuleList(Embedding(self.batch_size) for _ in f_s)
        self.keys = nn.ModuleList(Embedding(self.batch_size) for _ in f_t)
        self.regressors = nn.ModuleList(nn.ModuleList(_regressor(s.shape[1], t.shape[1]) for t in f_t) for s in f_s)
        self.to(f_s[0].device, f_s[0].dtype)

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        f_s, f_t = _maps(student), _maps(teacher)
        if (len(self.queries), len(self.keys)) != (len(f_s), len(f_t)):
            raise InputError("SemCKD: call build(student, teacher) with examples of these layers first")
        queries = torch.stack([embed(s) for embed, s in zip(self.queries, f_s)], 1)
        keys = torch.stack([embed(t) for embed, t in zip(self.keys, f_t)], 2)
        sized = [[same_size(s, t) for t in f_t] for s in f_s]
        values = [
            [project(s) for project, (s, _) in zip(row, both)]  # type: ignore[call-overload]
            for row, both in zip(self.regressors, sized)
        ]
        targets = [[t for _, t in both] for both in sized]
        return semckd((queries @ keys / self.T).softmax(-1), values, targets)

    def extra_repr(self) -> str:
        return f"batch_size={self.batch_size}" + (f", T={self.T:g}" if self.T != 1 else "")


def _maps(layers: Layers) -> list[Tensor]:
    return [as_map("SemCKD", layer) for layer in ([layers] if isinstance(layers, Tensor) else layers)]


def _regressor(inputs: int, outputs: int) -> nn.Sequential:
    middle = 2 * outputs
    last = nn.Conv2d(middle, outputs, 1, bias=False)
    return nn.Sequential(*conv_bn(inputs, middle), *conv_bn(middle, middle, kernel=3), last)
