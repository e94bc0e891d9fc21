"""Self-distillation inside one network: shallow classifiers that learn from labels and from the deepest one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._logits import checked_logits
from kd.losses._maps import BatchNorm, as_map, conv_bn, pool
from kd.losses.cross_entropy import OfLabels, cross_entropy
from kd.losses.divergences import kl
from kd.registry import losses


class Branch(nn.Module):
    """A shallow classifier: a map [B, C, H, W] to features [B, width], as wide as the deepest ones, and logits.

    A bottleneck of a 1x1 convolution to a quarter of the width, one of ``stride`` x ``stride`` with that stride and
    another 1x1, each with batch norm and ReLU; then the mean over positions and a linear layer.
    """

    def __init__(self, channels: int, width: int, stride: int, classes: int) -> None:
        super().__init__()
        middle = max(width // 4, 1)
        shrink = [nn.Conv2d(middle, middle, stride, stride, bias=False), BatchNorm(middle), nn.ReLU()]
        self.bottleneck = nn.Sequential(*conv_bn(channels, middle), *shrink, *conv_bn(middle, width))
        self.fc = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = pool(self.bottleneck(features), (1, 1)).flatten(1)
        return features, self.fc(features)


@losses.register("byot")
class BYOT(OfLabels):
    """Sum over shallow heads of (1 - alpha) * CE + alpha * T^2 * KL(output || head) + hint * |f_head - f_last|.

    Zhang et al. 2019, "Be Your Own Teacher" (arXiv:1905.08094), beside CE on the output. The student's layers
    are its shallow maps, its last map and its output ("" among the layers); each shallow map gets a classifier of its
    own, which trains with the student and is discarded afterwards. The output and the last map's mean over positions
    are targets without gradient. The hint is the norm of the difference of all the batch's features, as in
    mmrazor, whose weights are alpha 0.3, T 3 and ``hint`` 0.03 for all but the deepest branch, 0 there: a number
    for each branch, or one for all. The paper squares the norm.

    Raises:
        InputError: numbers out of range, or layers that are not maps.
    """

    takes_unlabelled = True
    takes_mixed = True

    def __init__(self, alpha: float = 0.3, T: float = 3.0, hint: float | Sequence[float] = 0.03) -> None:
        super().__init__()
        check_positive(T=T)
        hints = [float(h) for h in hint] if isinstance(hint, Sequence) else [float(hint)]
        if not 0 <= alpha <= 1 or not all(h >= 0 for h in hints):
            raise InputError(f"alpha must lie in [0, 1] and hint be at least 0, got {alpha=}, {hint=}")
        self.alpha, self.T, self.hints = alpha, T, hints
        self.branches = nn.ModuleList()

    def build(self, student: Sequence[Tensor]) -> None:
        maps, last, logits = _layers(student)
        if len(self.hints) not in (1, len(maps)):
            raise InputError(f"BYOT: hint is one number, or one for each of {len(maps)} shallow maps, got {self.hints}")
        strides = [max(1, min(m.shape[2] // last.shape[2], m.shape[3] // last.shape[3])) for m in maps]
        branches = (Branch(m.shape[1], last.shape[1], stride, logits.shape[1]) for m, stride in zip(maps, strides))
        self.branches = nn.ModuleList(branches).to(last.device, last.dtype)

    def forward(self, student: Sequence[Tensor], labels: Tensor) -> Tensor:
        maps, last, logits = _layers(student)
        if len(self.branches) != len(maps):
            raise InputError("BYOT: call build(student) with examples of these layers first")
        deepest, target = pool(last, (1, 1)).flatten(1).detach(), logits.detach()
        parts = []
        hints = self.hints * len(maps) if len(self.hints) == 1 else self.hints
        for branch, features, hint in zip(self.branches, maps, hints):
            vector, head_logits = branch(features)
            parts.append((1 - self.alpha) * cross_entropy(head_logits, labels, shared=self.shared))
            parts.append(self.alpha * kl(head_logits, target, self.T))
            parts.append(hint * torch.linalg.vector_norm(vector - deepest))
        return torch.stack(parts).sum()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, T={self.T:g}, hint={', '.join(f'{h:g}' for h in self.hints)}"


def _layers(student: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Shallow maps, last map and output."""
    if isinstance(student, Tensor) or len(student) < 3:
        raise InputError('BYOT needs shallow maps, the last map and the output: student=[stage1, stage2, last, ""]')
    *maps, last, logits = student
    return [as_map("BYOT", m) for m in maps], as_map("BYOT", last), checked_logits("BYOT", "student", logits)
