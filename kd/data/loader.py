"""Batches out of resident tensors, in an order that is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kd.data.augment import permutation
from kd.data.batch import Batch


class Loader:
    """An iterable with a length over resident tensors; its order is computed from (seed, epoch).

    Args:
        images: [N, C, H, W] as uint8.
        labels: [N].
        batch_size: images per batch of this process.
        train: whether the order is shuffled and only whole batches are given; else all of it in order.
        seed: of the order.
        epoch: says the epoch's number when a pass begins.
        rank: this process among ``world``; together they give each sample once, and no sample twice.
        world: how many processes share a pass.
        start: how many samples of the epoch's order the first pass leaves out, counted over all processes: after k
            batches, k * batch_size * world. Later passes are whole, and so is the length told, as Lightning counts
            the batches of a resumed epoch from its beginning.
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
    ) -> None:
        self.images, self.labels, self.batch_size, self.train = images, labels, batch_size, train
        self.seed, self.epoch, self.rank, self.world, self.start = seed, epoch, rank, world, start

    def __len__(self) -> int:
        return self._batches(len(self.labels))

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        order = shard(len(self.labels), self.train, self.seed, self.epoch(), self.rank, self.world, start)
        order = order.to(self.images.device)
        for step in range(self._batches(len(self.labels) - start)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield Batch(self.images.index_select(0, index), self.labels.index_select(0, index), index)

    def _batches(self, count: int) -> int:
        if self.train:
            return count // (self.batch_size * self.world)
        return -(-len(range(self.rank, count, self.world)) // self.batch_size)


def shard(count: int, shuffle: bool, seed: int, epoch: int, rank: int, world: int, start: int) -> Tensor:
    """One process's positions of an epoch: every ``world``-th of its order after the first ``start``."""
    order = permutation(count, seed, epoch) if shuffle else torch.arange(count)
    return order[start:][rank::world]
