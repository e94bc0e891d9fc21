"""What losses on relations between samples share: layers side by side, vectors, and learned embeddings of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive

Layers = Tensor | Sequence[Tensor]


def matched(name: str, student: Layers, teacher: Layers, maps: bool = False) -> list[tuple[Tensor, Tensor]]:
    """The matching layers of both sides, with equal batches; with ``maps`` all must be [B, C, H, W].

    Raises:
        InputError: lists of unequal length, unequal batches, or tensors of other dimensions.
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
    """A trained linear map to ``dim`` dimensions for each network, created by ``build``."""

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        check_positive(dim=dim)
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
