"""A data set in memory: its parts, loaders whose order is computed, and the augmentation of a whole batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kd.data.arrays import adapted
from kd.data.augment import Augment, crop_flip, view_count
from kd.data.batch import Arrays, Batch
from kd.data.loader import Loader, check_last
from kd.data.mixup import Mixing
from kd.data.per_device import PerDevice
from kd.data.sampler import check_sampler, rounds
from kd.data.split import Subset, split, statistics
from kd.errors import InputError
from kd.rng import WEAK, below, hashed


class Memory:
    """A data set held in memory as uint8 tensors.

    Args:
        arrays: the data set; other types than uint8 images and class numbers are converted if unambiguous.
        batch_size: images per step and process in training.
        eval_batch_size: likewise in validation and test.
        val: the fraction of the training images held out for validation, stratified by class; or ``"test"``, which
            selects the best epoch on the test set as many published tables do, and is recorded in the summary.
        fraction: the fraction of each class's remaining training images to use; see :class:`~kd.data.split.Subset`.
        per_class: number of training images of each class that are used; 0 for all.
        unlabelled: whether the images outside that subset stay in the training set, without their labels.
        pad: zero padding of the random crop, in pixels.
        border: the padding mode: ``zero``, ``edge`` or ``reflect``.
        flip: whether half of the images are flipped horizontally.
        scale: a random resized crop: the minimum and maximum fraction of the image area in its box; None for none.
        jitter: brightness, contrast and saturation are scaled by factors in [1 - jitter, 1 + jitter].
        transform: a per-sample transform, such as ``randaugment``; see :mod:`kd.data.transforms`.
        erase: the fraction of images from which a random box is erased.
        erase_area: the minimum and maximum fraction of the image area in this box.
        cutout: side of a square erased from every image, in pixels; 0 for none.
        mixup: alpha of MixUp, 0 for none; see :class:`~kd.data.mixup.Mixing`.
        cutmix: alpha of CutMix, 0 for none.
        views: number of augmentations of each image, drawn once for all runs; 0 for a new one each epoch.
        repeats: number of consecutive occurrences of an image, each with another augmentation; the epoch length does
            not change, so an epoch shows one in ``repeats`` of the images.
        drop_last: whether the last incomplete batch of an epoch is dropped; otherwise it is a smaller batch, as in
            most published runs.
        sampler: ``balanced`` samples every class equally often; see :func:`~kd.data.sampler.balanced`.
        resident: whether the training images are kept on the training device.
        split_seed: seed of the validation split and the subset; separate from the run's seed, so that seeds share them.

    Raises:
        InputError: sizes or fractions out of range, fewer images than one batch, or invalid images or labels.
    """

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val: float | str = 0.1,
        fraction: float = 1.0,
        per_class: int = 0,
        unlabelled: bool = False,
        pad: int = 0,
        border: str = "zero",
        flip: bool = False,
        scale: list[float] | None = None,
        jitter: float = 0.0,
        transform: Any = None,
        erase: float = 0.0,
        erase_area: list[float] = [0.02, 0.33],  # noqa: B006 (never changed; Hydra shows it)
        cutout: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        views: int = 0,
        repeats: int = 1,
        sampler: str | None = None,
        resident: bool = False,
        split_seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        _check_counts(batch_size, eval_batch_size, repeats, sampler)
        arrays = adapted(arrays)
        self.repeats, self.drop_last, self.sampler = repeats, drop_last, sampler
        self.batch_size, self.eval_batch_size, self.val, self.resident = batch_size, eval_batch_size, val, resident
        self.names, self.classes, self.shape = arrays.names, len(arrays.names), tuple(arrays.train[0].shape[1:])
        self._divide(arrays, Subset(fraction, per_class, unlabelled), split_seed)
        self.times = rounds(self.parts["train"][1]) if sampler else repeats  # maximum per image and epoch
        fill = [round(255 * m) for m in self.mean]
        self._augment = Augment(
            self.shape, fill, pad, border, flip, erase, erase_area, cutout, transform, views, scale, jitter
        )
        self._mixing = Mixing(self.shape, self.classes, mixup, cutmix) if mixup or cutmix else None

    def _divide(self, arrays: Arrays, subset: Subset, seed: int) -> None:
        images, labels = arrays.train
        train, train_labels, held_out = split(labels, self.val, subset, seed, self.names)
        if len(train) < self.batch_size:
            raise InputError(f"batch_size={self.batch_size} exceeds the {len(train)} training images")
        check_last(len(train), self.batch_size, self.drop_last)
        val = (images[held_out], labels[held_out]) if len(held_out) else arrays.test
        self.parts = {"train": (images[train], train_labels), "val": val, "test": arrays.test}
        self._resident = PerDevice(*self.parts["train"])
        if arrays.mean is not None and arrays.std is not None:
            self.mean, self.std = arrays.mean, arrays.std
        else:  # of all images that are not held out, so that a subset does not change the networks' normalisation
            remaining = torch.ones(len(labels), dtype=torch.bool)
            remaining[held_out] = False
            self.mean, self.std = statistics(images, remaining.nonzero().flatten())

    @property
    def views(self) -> int:
        """Number of views of a training image; 0 if they cannot be enumerated."""
        return 0 if self._mixing and not self._augment.keep else self._augment.views

    @property
    def mixed(self) -> bool:
        """Whether training labels are probabilities [B, classes]."""
        return self._mixing is not None

    @property
    def train_labels(self) -> Tensor:
        """Class numbers [N] of the training set, -1 where unknown."""
        return self.parts["train"][1]

    @property
    def unlabelled(self) -> bool:
        """Whether some training labels are -1 (unknown)."""
        return bool((self.parts["train"][1] < 0).any())

    def loader(
        self,
        part: str,
        seed: int = 0,
        epoch: Callable[[], int] = int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        device: torch.device | None = None,
    ) -> Loader:
        """The batches of ``train`` (shuffled), ``val`` or ``test`` (in order, all of it).

        ``start`` counts samples (see :class:`~kd.data.loader.Loader`); ``device`` holds resident images.
        """
        train = part == "train"
        size = self.batch_size if train else self.eval_batch_size
        images, labels = self.parts[part]
        if train and self.resident and device is not None:
            images, labels = self._resident.on(device)
        repeats = self.repeats if train else 1
        pin = device is not None and device.type == "cuda" and images.device.type == "cpu"
        balance = self.parts[part][1] if train and self.sampler else None
        order = (seed, epoch, rank, world, start)
        return Loader(images, labels, size, train, *order, repeats, pin, self.drop_last, balance)

    def view_of(self, index: Tensor, time: Tensor | None, seed: int, epoch: int) -> Tensor:
        """The view [n] of each position in an epoch, where views can be enumerated."""
        when = epoch if time is None else epoch * self.times + time
        view = self._augment.draw(index, seed, when)[0]
        assert view is not None
        return view

    def augment(self, batch: Batch, seed: int, epoch: int) -> Batch:
        """The training batch with each image replaced by its view of this epoch, on the batch's device."""
        if batch.index is None:
            return batch
        index, images, labels = batch.index, batch.images, batch.labels
        when = epoch if batch.view is None else epoch * self.times + batch.view
        view, seed, drawn = self._augment.draw(index, seed, when)
        images = self._augment(images, index, seed, drawn, None if self._augment.keep else view)
        if self._mixing:
            all_images, all_labels = self._resident.on(images.device)
            partner = self._mixing.partner(index, len(all_labels), seed, drawn)
            other = self._augment(all_images.index_select(0, partner), partner, seed, drawn, None)
            pair, pair_labels = (images, other), (labels, all_labels.index_select(0, partner))
            images, labels = self._mixing(pair, pair_labels, index, seed, drawn)
        return Batch(images, labels, index, view if self.views else None)

    def weak(self, index: Tensor, seed: int, epoch: int) -> Tensor:
        """The training images at these positions [n], each with another crop and flip than in this epoch's batch."""
        images, look = self._resident.on(index.device)[0].index_select(0, index), self._augment
        count = view_count(look.pad, look.flip)
        view = below(count, hashed(seed, epoch, index, WEAK)) if count > 1 else torch.zeros_like(index)
        return crop_flip(images, view, look.pad, look.flip, look.border)

    def augmentation(self) -> dict[str, Any]:
        """Everything that determines the pixels of view v of sample i, in plain containers."""
        return {**self._augment.describe(), "views": self.views, "mix": self._mixing and self._mixing.describe()}

    def counts(self) -> dict[str, int]:
        """Number of images of each part, and of labelled training images if not all are."""
        counts = {part: len(labels) for part, (_, labels) in self.parts.items()}
        labelled = int((self.parts["train"][1] >= 0).sum())
        return counts if labelled == counts["train"] else {**counts, "labelled": labelled}

    def describe(self) -> dict[str, Any]:
        """Counts, shape and sha256 for the run's summary."""
        return {"classes": self.classes, "shape": list(self.shape), **self.counts(), "sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for images, labels in self.parts.values():
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
        return digest.hexdigest()

    def train_sha256(self) -> str:
        """sha256 of the training images in order, without labels."""
        return self._train_sha256

    @cached_property
    def _train_sha256(self) -> str:
        images = self.parts["train"][0]
        head = f"{images.dtype} {list(images.shape)} ".encode()
        return hashlib.sha256(head + images.numpy().tobytes()).hexdigest()


def _check_counts(batch_size: int, eval_batch_size: int, repeats: int, sampler: str | None) -> None:
    if batch_size < 1 or eval_batch_size < 1:
        raise InputError(f"batch_size and eval_batch_size must be at least 1, got {batch_size}, {eval_batch_size}")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    check_sampler(sampler, repeats)
