"""Batches of tensors in memory, in a computed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kd.data.augment import permutation
from kd.data.batch import Batch
from kd.data.sampler import balanced
from kd.errors import InputError


class Loader:
    """A sized iterable over tensors in memory; its order is computed from (seed, epoch).

    Args:
        images: [N, C, H, W] as uint8.
        labels: [N].
        batch_size: images per batch of this process.
        train: whether the order is shuffled; otherwise all samples in order.
        seed: of the order.
        epoch: returns the number of the epoch when a pass begins.
        rank: this process among ``world``; together the processes load each sample once.
        world: number of processes that share a pass.
        start: number of samples of the epoch's order that the first pass skips, over all processes: after k batches,
            k * batch_size * world. Later passes are complete, and so is the reported length, as Lightning counts the
            batches of a resumed epoch from its beginning.
        repeats: number of consecutive occurrences of a sample; the epoch length does not change, so an epoch shows one
            in ``repeats`` of the samples. The batch's ``view`` is then the number of the occurrence.
        drop_last: in training, whether the last incomplete batch is dropped; otherwise it is a smaller batch with the
            same number of samples for each process, so that fewer than ``world`` samples are dropped.
        pin: whether batches are in pinned memory, from which a GPU copies asynchronously.
        balance: labels [N] whose classes are sampled equally often; None for every sample once. The batch's ``view`` is
            then the number of the occurrence.
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
        """Read by Lightning's batch-size finder, for its length."""
        return self.labels

    def __len__(self) -> int:
        return self._batches(len(self.labels))

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        order, times = self.order(self.epoch(), start)
        order = order.to(self.images.device)
        times = None if times is None else times.to(self.images.device)
        for first in range(0, len(order), self.batch_size):
            batch_slice = slice(first, first + self.batch_size)
            index, time = order[batch_slice], None if times is None else times[batch_slice]
            batch = Batch(self.images.index_select(0, index), self.labels.index_select(0, index), index, time)
            yield batch.each(Tensor.pin_memory) if self.pin else batch

    def order(self, epoch: int, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """An epoch's positions [n] after the first ``start`` samples, and their occurrence numbers if some repeat."""
        count = len(self.labels)
        if self.balance is not None:
            size = self._batches(count - start) * self.batch_size
            order, times = (each[start:][self.rank :: self.world] for each in balanced(self.balance, self.seed, epoch))
            return order[:size], times[:size]
        order = shard(count, self.train, self.seed, epoch, self.rank, self.world, start, self.repeats)
        size_of_shard = (count - start) // self.world if self.train else len(order)
        size_of_shard = min(self._batches(count - start) * self.batch_size, size_of_shard)
        times = torch.arange(start, count)[self.rank :: self.world][:size_of_shard] % self.repeats
        return order[:size_of_shard], times if self.repeats > 1 else None

    def _batches(self, count: int) -> int:
        if self.train:
            return batches_of(count, self.batch_size, self.world, self.drop_last)
        return -(-len(range(self.rank, count, self.world)) // self.batch_size)


def batches_of(count: int, batch_size: int, world: int, drop_last: bool = True) -> int:
    """Number of training batches of each of ``world`` processes, for ``count`` samples."""
    each = count // world
    return each // batch_size if drop_last else -(-each // batch_size)


def check_last(count: int, batch_size: int, drop_last: bool) -> None:
    """Refuses a last batch of a single sample, for which batch norm and many losses are undefined.

    Raises:
        InputError: the last batch would have one sample.
    """
    if not drop_last and batch_size > 1 and count % batch_size == 1:
        fault = f"batch_size={batch_size} of {count} training images leaves a last batch of one"
        raise InputError(f"{fault}: set another data.batch_size, or data.drop_last=true")


def shard(
    count: int, shuffle: bool, seed: int, epoch: int, rank: int, world: int, start: int, repeats: int = 1
) -> Tensor:
    """One process's positions of an epoch: every ``world``-th of its order after the first ``start``.

    With ``repeats``, repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335) by the rule of DeiT's sampler: each
    position occurs ``repeats`` times in a row, so that the processes share its occurrences; the order is then cut to
    the epoch length.
    """
    order = permutation(count, seed, epoch) if shuffle else torch.arange(count)
    return order.repeat_interleave(repeats)[:count][start:][rank::world]
