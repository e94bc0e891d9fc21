"""Batches out of resident tensors, in an order that is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kd.data.augment import permutation
from kd.data.batch import Batch
from kd.data.sampler import balanced
from kd.errors import InputError


class Loader:
    """An iterable with a length over resident tensors; its order is computed from (seed, epoch).

    Args:
        images: [N, C, H, W] as uint8.
        labels: [N].
        batch_size: images per batch of this process.
        train: whether the order is shuffled; else all of it in order.
        seed: of the order.
        epoch: says the epoch's number when a pass begins.
        rank: this process among ``world``; together they give each sample once, and no sample twice.
        world: how many processes share a pass.
        start: how many samples of the epoch's order the first pass leaves out, counted over all processes: after k
            batches, k * batch_size * world. Later passes are whole, and so is the length told, as Lightning counts
            the batches of a resumed epoch from its beginning.
        repeats: how often each sample of an epoch comes, one time after another; an epoch stays as long, and so
            shows one in ``repeats`` of them. The batch's ``view`` then says which time it is.
        drop_last: in training, whether the rest of an epoch that is no whole batch is left out; else it is a smaller
            batch, of equally many samples for each process, so that fewer than ``world`` samples are left out.
        pin: whether batches lie in pinned memory, from which a GPU copies without making the host wait.
        balance: the labels [N] whose classes come equally often; None for every sample once. The batch's ``view`` then
            says which time a sample comes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        train: bool,
        seed: int = 0,
        epoch: Callable[[], int] = int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        repeats: int = 1,
        pin: bool = False,
        drop_last: bool = True,
        balance: Tensor | None = None,
    ) -> None:
        self.images, self.labels, self.batch_size, self.train = images, labels, batch_size, train
        self.seed, self.epoch, self.rank, self.world, self.start = seed, epoch, rank, world, start
        self.repeats, self.pin, self.drop_last, self.balance = repeats, pin, drop_last, balance

    @property
    def dataset(self) -> Tensor:
        """What Lightning's search for a batch size takes the length of."""
        return self.labels

    def __len__(self) -> int:
        return self._batches(len(self.labels))

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        order, times = self.order(self.epoch(), start)
        order = order.to(self.images.device)
        times = None if times is None else times.to(self.images.device)
        for first in range(0, len(order), self.batch_size):
            here = slice(first, first + self.batch_size)
            index, time = order[here], None if times is None else times[here]
            batch = Batch(self.images.index_select(0, index), self.labels.index_select(0, index), index, time)
            yield batch.each(Tensor.pin_memory) if self.pin else batch

    def order(self, epoch: int, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """An epoch's positions [n] after the first ``start`` samples, and which time each is if some come again."""
        count = len(self.labels)
        if self.balance is not None:
            size = self._batches(count - start) * self.batch_size
            order, times = (each[start:][self.rank :: self.world] for each in balanced(self.balance, self.seed, epoch))
            return order[:size], times[:size]
        order = shard(count, self.train, self.seed, epoch, self.rank, self.world, start, self.repeats)
        given = (count - start) // self.world if self.train else len(order)
        given = min(self._batches(count - start) * self.batch_size, given)
        times = torch.arange(start, count)[self.rank :: self.world][:given] % self.repeats
        return order[:given], times if self.repeats > 1 else None

    def _batches(self, count: int) -> int:
        if self.train:
            return batches_of(count, self.batch_size, self.world, self.drop_last)
        return -(-len(range(self.rank, count, self.world)) // self.batch_size)


def batches_of(count: int, batch_size: int, world: int, drop_last: bool = True) -> int:
    """How many batches of training each of ``world`` processes gets out of ``count`` samples."""
    each = count // world
    return each // batch_size if drop_last else -(-each // batch_size)


def check_last(count: int, batch_size: int, drop_last: bool) -> None:
    """Refuses a last batch of one sample, of which batch norm and many losses can make nothing.

    Raises:
        InputError: it would be one.
    """
    if not drop_last and batch_size > 1 and count % batch_size == 1:
        rest = f"batch_size={batch_size} of {count} training images leaves a last batch of one"
        raise InputError(f"{rest}: set another, or data.drop_last=true")


def shard(
    count: int, shuffle: bool, seed: int, epoch: int, rank: int, world: int, start: int, repeats: int = 1
) -> Tensor:
    """One process's positions of an epoch: every ``world``-th of its order after the first ``start``.

    With ``repeats``, repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335) by the rule of DeiT's sampler: each
    position comes so many times in a row, so that processes share them out, and the rest of the order is left out.
    """
    order = permutation(count, seed, epoch) if shuffle else torch.arange(count)
    return order.repeat_interleave(repeats)[:count][start:][rank::world]
