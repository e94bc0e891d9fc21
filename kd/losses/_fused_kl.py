"""KL divergence without its intermediate tensors: value and gradient in one pass over a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_SIZE = {"cpu": 2**18}  # numbers in a chunk; fits the cache of two cores
GPU_CHUNK_SIZE = 2**20  # enough to occupy a GPU


class FusedKL(torch.autograd.Function):
    """sum KL(p || q) over the rows of logits [B, C], p and q their softmax at temperature T.

    The gradient with respect to the student's logits, (q - p) / T, is computed with the value and is the only tensor
    [B, C] that is stored: everything else exists for one chunk of rows. Each summand includes q - p, whose sum is 0, so
    that the rounding of the two normalisers cancels.

    The teacher gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, T: float) -> Tensor:
        rows = max(1, CHUNK_SIZE.get(student.device.type, GPU_CHUNK_SIZE) // max(student.shape[1], 1))
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        scratch = student.new_empty((3, min(rows, len(student)), student.shape[1]))
        total = student.new_zeros(())
        for first in range(0, len(student), rows):
            chunk = slice(first, first + rows)
            total += _chunk(student[chunk], teacher[chunk], T, gradient[chunk], scratch)
        ctx.gradient, ctx.T = gradient, T
        ctx.save_for_backward(student, teacher)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        difference = ctx.gradient
        if torch.is_grad_enabled():  # with create_graph: a second derivative may follow
            student, teacher = ctx.saved_tensors
            difference = (student / ctx.T).softmax(-1) - (teacher / ctx.T).softmax(-1)
        return upstream / ctx.T * difference, None, None


def _chunk(student: Tensor, teacher: Tensor, T: float, difference: Tensor, scratch: Tensor) -> Tensor:
    """sum KL of some rows; ``difference`` becomes q - p."""
    a, b, p = scratch[:, : len(student)]
    # subtract the maximum: a difference of large logits would be mostly rounding
    torch.add(teacher.amax(-1, keepdim=True).mul_(-1 / T), teacher, alpha=1 / T, out=a)
    torch.add(student.amax(-1, keepdim=True).mul_(-1 / T), student, alpha=1 / T, out=b)
    p, q = torch.exp(a, out=p), torch.exp(b, out=difference)
    of_p, of_q = p.sum(-1, keepdim=True), q.sum(-1, keepdim=True)  # more exact than the sums within softmax
    p.div_(of_p)
    difference = q.div_(of_q).sub_(p)
    log_ratio = a.sub_(b).add_((of_q / of_p).log())
    return torch.addcmul(difference, log_ratio, p, out=log_ratio).sum()


def fused_kl(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """sum KL(p || q) over all rows of logits [..., C]; see :class:`FusedKL`."""
    return FusedKL.apply(student.flatten(0, -2), teacher.flatten(0, -2), T)


def can_fuse(student: Tensor, teacher: Tensor) -> bool:
    """Whether the two are logits of one shape and kind, and the teacher's need no gradient."""
    alike = student.shape == teacher.shape and student.ndim >= 2 and student.numel() > 0
    exact = student.dtype == teacher.dtype and student.dtype in (torch.float32, torch.float64)
    return alike and exact and not (torch.is_grad_enabled() and teacher.requires_grad)
