"""A data set in memory: split, loaders that compute their order, and the augmentation of a whole batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kd.data.augment import crop_flip, permutation, view_count, views
from kd.data.batch import Arrays, Batch
from kd.errors import InputError


class Memory:
    """Resident uint8 tensors.

    Args:
        arrays: the data set.
        batch_size: images per step and process in training.
        eval_batch_size: the same in validation and test.
        val: the share of the training images held out for validation, drawn by class; or ``"test"``, which
            chooses the best epoch on the test set as many published tables do, and is named in the summary.
        pad: zero padding of the random crop, in pixels.
        flip: whether half of the images are flipped horizontally.
        split_seed: draws the validation split; apart from the run's seed, so that seeds share the split.

    Raises:
        InputError: sizes or shares out of range, or fewer images than one batch.
    """

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val: float | str = 0.1,
        pad: int = 0,
        flip: bool = False,
        split_seed: int = 0,
    ) -> None:
        self._check(arrays, batch_size, eval_batch_size, val, pad)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val, self.pad, self.flip = val, pad, flip
        self.names = arrays.names
        self.classes = len(arrays.names)
        images, labels = arrays.train
        self.shape = tuple(images.shape[1:])
        if isinstance(val, str):
            train, held_out = torch.arange(len(labels)), arrays.test
        else:
            train, kept = stratified(labels, val, split_seed)
            held_out = (images[kept], labels[kept])
        self.parts = {"train": (images[train], labels[train]), "val": held_out, "test": arrays.test}
        if len(train) < batch_size:
            raise InputError(f"batch_size={batch_size} is more than the {len(train)} training images")
        self.mean, self.std = arrays.mean, arrays.std
        if self.mean is None or self.std is None:
            self.mean, self.std = statistics(self.parts["train"][0])

    @staticmethod
    def _check(arrays: Arrays, batch_size: int, eval_batch_size: int, val: float | str, pad: int) -> None:
        if batch_size < 1 or eval_batch_size < 1:
            raise InputError(f"batch_size and eval_batch_size must be at least 1, got {batch_size}, {eval_batch_size}")
        if not (val == "test" or (isinstance(val, float) and 0 < val < 1)):
            raise InputError(f"val must be a share in (0, 1) or 'test', got {val!r}")
        if not 0 <= pad < min(arrays.train[0].shape[2:]):
            raise InputError(f"pad must lie between 0 and the image size, got {pad}")
        for part, (images, labels) in (("training", arrays.train), ("test", arrays.test)):
            if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels) or not len(labels):
                shapes = f"{images.dtype} {list(images.shape)} and {list(labels.shape)}"
                raise InputError(f"the {part} set needs uint8 images [N, C, H, W] and labels [N], got {shapes}")
            if labels.min() < 0 or labels.max() >= len(arrays.names):
                raise InputError(f"the {part} labels leave the range of the {len(arrays.names)} classes")

    @property
    def views(self) -> int:
        """How many views a training image has."""
        return view_count(self.pad, self.flip)

    def loader(self, part: str, seed: int = 0, epoch: Callable[[], int] = int, rank: int = 0, world: int = 1) -> Loader:
        """The batches of ``train`` (shuffled, whole batches only), ``val`` or ``test`` (in order, all of it)."""
        train = part == "train"
        size = self.batch_size if train else self.eval_batch_size
        return Loader(*self.parts[part], size, train, seed, epoch, rank, world)

    def augment(self, batch: Batch, seed: int, epoch: int) -> Batch:
        """The training batch with each image replaced by its view of this epoch."""
        if batch.index is None or self.views == 1:
            return batch
        view = views(batch.index, seed, epoch, self.pad, self.flip)
        return batch._replace(images=crop_flip(batch.images, view, self.pad, self.flip), view=view)

    def describe(self) -> dict[str, Any]:
        """Counts, shape and sha256 for the run's summary."""
        counts = {part: len(labels) for part, (_, labels) in self.parts.items()}
        digest = hashlib.sha256()
        for images, labels in self.parts.values():
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
        return {"classes": self.classes, "shape": list(self.shape), **counts, "sha256": digest.hexdigest()}


class Loader:
    """An iterable with a length over resident tensors; its order is computed from (seed, epoch)."""

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
    ) -> None:
        self.images, self.labels, self.batch_size, self.train = images, labels, batch_size, train
        self.seed, self.epoch, self.rank, self.world = seed, epoch, rank, world

    def __len__(self) -> int:
        if self.train:
            return len(self.labels) // (self.batch_size * self.world)
        mine = len(range(self.rank, len(self.labels), self.world))
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.labels)
        order = permutation(count, self.seed, self.epoch()) if self.train else torch.arange(count)
        order = order[self.rank :: self.world]
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield Batch(self.images[index], self.labels[index], index)


def stratified(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the rest and of a share of each class, at least one, both in ascending order."""
    order = permutation(len(labels), seed, epoch=0)
    kept = []
    for label in labels.unique():
        members = order[labels[order] == label]
        kept.append(members[: max(1, round(share * len(members)))])
    held_out = torch.cat(kept).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[held_out] = False
    return rest.nonzero().flatten(), held_out


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the [0, 1] scale, over at most 10,000 images."""
    pixels = images[:10_000].double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    return tuple(round(m, 4) for m in mean.tolist()), tuple(max(round(s, 4), 1e-3) for s in std.tolist())
