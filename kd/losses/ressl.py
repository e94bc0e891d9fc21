"""ReSSL: relations to a queue of weakly augmented samples (Zheng et al. 2021, arXiv:2107.09282)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._pairs import vectors
from kd.losses.divergences import soft_cross_entropy
from kd.registry import losses


def ressl(student: Tensor, teacher: Tensor, queue: Tensor, T: float = 0.1, T_teacher: float = 0.04) -> Tensor:
    """H(softmax(teacher Q / T_teacher), softmax(student Q / T)) for unit vectors and a queue Q [D, K].

    With V views of the batch in ``student`` [V B, D], view by view, the teacher's relations serve all of them.
    """
    relations = (teacher @ queue / T_teacher).softmax(1)
    return soft_cross_entropy(student @ queue / T, relations.repeat(len(student) // len(teacher), 1))


@losses.register("ressl")
class ReSSL(nn.Module):
    """H(softmax(<t, Q> / T_teacher), softmax(<s, Q> / T)), mean over the batch: relations to a queue Q of teacher keys.

    Embeddings [B, D], normalised here; a student of another width gets a trained linear map to the teacher's; a
    student batch of V B rows holds V views. Zheng et al. 2021, arXiv:2107.09282, section 3, a self-supervised
    method that needs no labels; weight 1. The queue [D, size] is a buffer, read before this batch's keys replace
    its oldest columns in training; it begins with random directions. 4096 columns are the authors' for CIFAR. With
    several processes the keys of all of them enter it.
    """

    queue: Tensor | None
    pointer: Tensor

    def __init__(self, T: float = 0.1, T_teacher: float = 0.04, size: int = 4096) -> None:
        super().__init__()
        check_positive(T=T, T_teacher=T_teacher, size=size)
        self.T, self.T_teacher, self.size = T, T_teacher, size
        self.embed: nn.Module = nn.Identity()
        self.register_buffer("queue", None)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def build(self, student: Tensor, teacher: Tensor) -> None:
        s, t = vectors("ressl", student, teacher)
        if s.shape[1] != t.shape[1]:
            self.embed = nn.Linear(s.shape[1], t.shape[1]).to(s)
        self.register_buffer("queue", F.normalize(torch.randn(t.shape[1], self.size), dim=0).to(t))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.queue is None:
            raise InputError("ressl has a queue whose size depends on the layers: call build first")
        if student.ndim != 2 or teacher.ndim != 2 or len(student) % len(teacher) or len(teacher) > self.size:
            shapes = f"{list(student.shape)} and {list(teacher.shape)}"
            raise InputError(f"ressl needs embeddings [V B, D] and [B, D] with B at most {self.size}, got {shapes}")
        q, keys = F.normalize(self.embed(student), dim=1), F.normalize(teacher, dim=1)
        # the backward pass needs the columns as they were before the update
        loss = ressl(q, keys, self.queue.clone() if self.training else self.queue, self.T, self.T_teacher)
        if self.training:
            keys = _of_all_processes(keys)
            if len(keys) > self.size:
                raise InputError(f"ressl: the batch has {len(keys)} keys over all processes, but size={self.size}")
            columns = (self.pointer + torch.arange(len(keys), device=keys.device)) % self.size
            self.queue.index_copy_(1, columns, keys.T)
            self.pointer.copy_((self.pointer + len(keys)) % self.size)
        return loss

    def extra_repr(self) -> str:
        return f"T={self.T:g}, T_teacher={self.T_teacher:g}, size={self.size}"


def _of_all_processes(keys: Tensor) -> Tensor:
    """The rows of all processes, in their order."""
    if not (dist.is_available() and dist.is_initialized()):
        return keys
    dist.all_gather(gathered := [torch.empty_like(keys) for _ in range(dist.get_world_size())], keys.contiguous())
    return torch.cat(gathered)
