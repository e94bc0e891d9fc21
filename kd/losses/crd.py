"""CRD: contrast with a memory bank, and within a batch (Tian et al. 2020, arXiv:1910.10699)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._checks import check_positive
from kd.losses._pairs import Embeddings, Layers, vectors
from kd.registry import losses
from kd.rng import mix


def crd_scores(anchor: Tensor, memory: Tensor, contrast: Tensor, T: float = 0.07) -> Tensor:
    """<anchor_b, memory[contrast_bk]> / T as [B, K + 1], for unit vectors [B, D], a bank [N, D] and its rows' numbers.

    Computes all B x N products and selects from them, which takes far less memory than gathering B x K vectors.
    """
    return (anchor @ memory.T).gather(1, contrast) / T


def crd_log_z(scores: Tensor, samples: int) -> Tensor:
    """log Z = log(N * mean exp(score)), the constant that CRD estimates from its first batch."""
    return scores.detach().logsumexp((0, 1)) + math.log(samples / scores.numel())


def crd(scores: Tensor, log_z: Tensor, samples: int, eps: float = 1e-7) -> Tensor:
    """-1/B * [sum_b log x_b0 / (x_b0 + c + eps) + sum_b,k log c / (x_bk + c + eps)], x = exp(score) / Z, c = K / N.

    Column 0 of the scores [B, K + 1] is the positive. Computed from logarithms: finite for any temperature.
    """
    share = (scores.shape[1] - 1) / samples
    ratio = scores - log_z - math.log(share + eps)
    constant = math.log(share / (share + eps)) * (scores.shape[1] - 1)
    return -(F.logsigmoid(ratio[:, 0]) + F.logsigmoid(-ratio[:, 1:]).sum(1)).mean() - constant


@torch.no_grad()
def crd_update(memory: Tensor, index: Tensor, anchor: Tensor, momentum: float = 0.5) -> None:
    """Moves the rows ``index`` of a bank towards ``anchor``, in place, at unit length."""
    rows = momentum * memory[index] + (1 - momentum) * anchor
    memory.index_copy_(0, index, F.normalize(rows, dim=1))


def _check_positions(index: Tensor, samples: int) -> None:
    if index.is_cuda:  # it would have to wait, in each step
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= samples:
        raise InputError(
            f"crd needs each sample's position in the training set, from 0 to {samples - 1}, but the third of a batch "
            f"holds {low} to {high}"
        )


class NegativeSampler(nn.Module):
    """Draws ``count`` samples of other classes for each sample of a batch.

    Every sample of another class is equally likely, and none is repeated while there are enough: one random sample
    from each of ``count`` equal stretches of the training set, sorted by class and rotated by a random amount.
    The draw is a pure function of (seed, step, sample), so that resuming is exact.
    """

    order: Tensor
    first: Tensor
    size: Tensor

    def __init__(self, labels: Tensor, count: int, seed: int) -> None:
        super().__init__()
        size = torch.bincount(labels)
        self.count, self.key = count, int(mix(torch.tensor(seed & 0xFFFFFFFF)))
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", size.cumsum(0) - size, persistent=False)
        self.register_buffer("size", size, persistent=False)

    def forward(self, labels: Tensor, index: Tensor, step: Tensor) -> Tensor:
        """Positions [B, count] in the training set, for class numbers and positions [B] and a step []."""
        key = mix(mix(step ^ self.key) ^ index)[:, None]
        first, size = self.first[labels][:, None], self.size[labels][:, None]
        others = len(self.order) - size
        stretch = torch.arange(self.count, device=index.device)
        low, high = stretch * others // self.count, (stretch + 1) * others // self.count
        turn = (mix(key ^ 0x9E3779B9) * others) >> 32
        position = (low + ((mix(stretch ^ key) * (high - low)) >> 32) + turn) % others
        return self.order[position + size * (position >= first)]


def _class_numbers(name: str, labels: Tensor, hint: str = "") -> None:
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(f"{name} needs class numbers [B] as labels, got {list(labels.shape)} {labels.dtype}{hint}")


@losses.register("crd")
class CRD(nn.Module):
    """h(s to teacher bank) + h(t to student bank), h = -mean [log x_0/(x_0 + K/N) + sum_K log (K/N)/(x_k + K/N)].

    x = exp(<bank row, v> / T) / Z of unit-length linear embeddings v; the positive is the sample's own row, the
    K negatives are samples of other classes. Tian, Krishnan and Isola 2020, arXiv:1910.10699, section 3, in the
    authors' code; weight 0.8, features [B, ...] before the classifier. The code's T is 0.07, the paper's 0.1.

    The banks [N, dim] are buffers, read before and updated after each training step; Z is fixed by the first.
    DDP broadcasts buffers from the first process before each step, so that only its samples' rows persist: on
    several devices prefer ``crd_batch``. N is ``samples`` or comes with the classes from the data; without
    classes every other sample is a negative.
    """

    step: Tensor
    log_z: Tensor
    memory_student: Tensor | None
    memory_teacher: Tensor | None

    def __init__(
        self,
        negatives: int = 16384,
        T: float = 0.07,
        momentum: float = 0.5,
        dim: int = 128,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(negatives=negatives, T=T)
        if not 0 <= momentum < 1:
            raise InputError(f"momentum must lie in [0, 1), got {momentum}")
        self.negatives, self.T, self.momentum, self.samples, self.seed = negatives, T, momentum, samples, seed
        self.embed = Embeddings("crd", dim)
        self.others: NegativeSampler | None = None
        self.by_class = False
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("memory_student", None)
        self.register_buffer("memory_teacher", None)
        if samples is not None:
            check_positive(samples=samples)
            self._attach(samples, torch.arange(samples))

    def attach_data(self, samples: int, labels: Tensor) -> None:
        """Called before ``build`` with the size of the training set and its class numbers [N]."""
        _class_numbers("crd", labels)
        if self.samples not in (None, samples) or len(labels) != samples:
            expected = self.samples if self.samples is not None else len(labels)
            raise InputError(f"samples={expected} of crd, but the training set has {samples}")
        self._attach(samples, labels)
        self.by_class = True

    def _attach(self, samples: int, labels: Tensor) -> None:
        if len(labels.unique()) < 2:
            raise InputError("crd draws negatives of other classes, and the training set has only one")
        self.samples = samples
        self.others = NegativeSampler(labels, self.negatives, self.seed)

    def build(self, student: Layers, teacher: Layers) -> None:
        if self.samples is None:
            raise InputError("crd keeps a bank row for every training sample: set samples, or call attach_data first")
        self.embed.build(student, teacher)
        bound = math.sqrt(3 / self.embed.dim)
        like = student if isinstance(student, Tensor) else student[0]
        for side in ("student", "teacher"):
            rows = torch.empty(self.samples, self.embed.dim, dtype=like.dtype).uniform_(-bound, bound)
            self.register_buffer(f"memory_{side}", rows.to(like.device))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        if index is None:
            raise InputError("crd needs each sample's position in the training set: batches (images, labels, index)")
        _class_numbers("crd", labels, hint="; crd_batch with other_class=false takes any")
        if self.others is None:
            raise InputError("crd keeps a bank row for every training sample: set samples, or call attach_data first")
        index = index.long()
        _check_positions(index, self.samples or 0)
        negatives = self.others(labels.long() if self.by_class else index, index, self.step)
        return self.sides(student, teacher, torch.cat([index[:, None], negatives], dim=1)).sum()

    def sides(self, student: Tensor, teacher: Tensor, contrast: Tensor) -> Tensor:
        """h from the student and h from the teacher [2], for positions [B, K + 1] whose column 0 is the sample's own.

        In training, updates the banks; the first step sets Z.
        """
        embedded = self.embed(*vectors("crd", student, teacher))
        v_s, v_t = (F.normalize(v, dim=1) for v in embedded)
        assert self.memory_student is not None
        assert self.memory_teacher is not None
        banks = (self.memory_teacher, self.memory_student)
        if self.training:  # the backward pass needs the rows as they were before the update
            banks = (banks[0].clone(), banks[1].clone())
        scores = [crd_scores(v, bank, contrast, self.T) for v, bank in zip((v_s, v_t), banks)]
        samples = len(self.memory_student)
        fresh = torch.stack([crd_log_z(part, samples) for part in scores])
        log_z = torch.where(self.step == 0, fresh, self.log_z)
        if self.training:
            self.log_z.copy_(log_z)
            self.step += 1
            crd_update(self.memory_student, contrast[:, 0], v_s, self.momentum)
            crd_update(self.memory_teacher, contrast[:, 0], v_t, self.momentum)
        return torch.stack([crd(part, z, samples) for part, z in zip(scores, log_z)])

    def extra_repr(self) -> str:
        return f"K={self.negatives}, T={self.T:g}, momentum={self.momentum:g}, dim={self.embed.dim}, N={self.samples}"


def crd_batch(student: Tensor, teacher: Tensor, T: float = 0.07, labels: Tensor | None = None) -> Tensor:
    """InfoNCE in both directions within the batch, of unit vectors [B, D]; equal ``labels`` [B] are no negatives."""
    logits = student @ teacher.T / T
    diagonal = torch.arange(len(logits), device=logits.device)
    if labels is not None:
        same_class = (labels[:, None] == labels) & (diagonal[:, None] != diagonal)
        logits = logits.masked_fill(same_class, -math.inf)
    return F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)


@losses.register("crd_batch")
class CRDBatch(nn.Module):
    """-mean log softmax_j(<s_i, t_j> / T) at j = i, plus the same from t to s: CRD's critic, the batch its negatives.

    CRD without banks: unit-length linear embeddings as in ``crd``, InfoNCE (van den Oord et al. 2018,
    arXiv:1807.03748, eq. 4) in place of CRD's estimator. Needs neither the samples' positions nor memory, and
    works on any number of devices. Negatives are the batch's samples of other classes, with
    ``other_class=false`` all of its samples, for labels of any kind. A batch of one gives 0. Weight 0.8 as for
    CRD is a choice, not a published value.
    """

    def __init__(self, T: float = 0.07, dim: int = 128, other_class: bool = True) -> None:
        super().__init__()
        check_positive(T=T)
        self.T, self.other_class = T, other_class
        self.takes_unlabelled = self.takes_mixed = not other_class
        self.embed = Embeddings("crd_batch", dim)

    def build(self, student: Layers, teacher: Layers) -> None:
        self.embed.build(student, teacher)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if self.other_class:
            _class_numbers("crd_batch", labels, hint="; other_class=false takes any")
        embedded = self.embed(*vectors("crd_batch", student, teacher))
        v_s, v_t = (F.normalize(v, dim=1) for v in embedded)
        return crd_batch(v_s, v_t, self.T, labels if self.other_class else None)

    def extra_repr(self) -> str:
        return f"T={self.T:g}, dim={self.embed.dim}" + ("" if self.other_class else ", other_class=False")
