"""Images in files, decoded by workers: class folders as ImageNet has them, or webdataset's shards."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from kd.data.augment import RULE
from kd.data.batch import Batch
from kd.data.decode import File
from kd.data.listing import listed
from kd.data.module import overfits
from kd.data.pictures import Decoded, Pictures, Views, training_transform
from kd.data.split import Subset, split
from kd.errors import InputError
from kd.registry import modules


@modules.register("folder")
class Folder(pl.LightningDataModule):
    """Images in files behind a LightningDataModule.

    Args:
        root: holds ``train`` and ``val``, or shards; what is called val there is the test set here. See
            :func:`~kd.data.listing.listed`.
        size: height and width of the images given: in training by ``crop``, elsewhere by resizing to size * 8 / 7
            and a centre crop.
        batch_size: images per step and process, also in evaluation.
        val: the share of the training images held out for validation, or ``"test"``.
        fraction: the share of each class's remaining training images that is used; see :class:`~kd.data.split.Subset`.
        per_class: how many training images of each class are used; 0 for all.
        unlabelled: whether the rest of that subset stays in the training set, without its labels.
        workers: processes that decode.
        crop: ``resized`` for a random resized crop (Szegedy et al. 2015, arXiv:1409.4842), ``centre`` for the crop of
            evaluation.
        scale: the least and the largest share of the picture that the random crop takes.
        flip: whether half of the images are flipped horizontally.
        transform: what comes after them, such as ``randaugment``; see :mod:`kd.data.transforms`.
        views: how many augmentations each image has, drawn once for all runs; 0 for a new one each epoch.
        mean: per channel on the [0, 1] scale; ImageNet's unless said otherwise.
        std: likewise.
        seed: of the order and the augmentation.
        split_seed: draws the validation split and the subset.

    Attributes:
        start: as of :class:`~kd.data.module.Data`.

    Raises:
        InputError: absent or empty folders, other classes in ``val`` than in ``train``, numbers out of range.
    """

    mixed = False
    checked = True  # batches come as they must be, and need not be looked at

    def __init__(
        self,
        root: str,
        size: int = 224,
        batch_size: int = 256,
        val: float | str = 0.02,
        fraction: float = 1.0,
        per_class: int = 0,
        unlabelled: bool = False,
        workers: int = 4,
        crop: str = "resized",
        scale: list[float] = [0.08, 1.0],  # noqa: B006 (never changed; Hydra shows it)
        flip: bool = True,
        transform: Any = None,
        views: int = 0,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        if min(size, batch_size) < 1 or workers < 0:
            numbers = f"{size=} {batch_size=} {workers=}"
            raise InputError(f"size and batch_size must be at least 1, workers at least 0: {numbers}")
        self.root, self.shape, self.mean, self.std, self.seed = root, (3, size, size), mean, std, seed
        self.batch_size, self.workers, self.val, self.start = batch_size, workers, val, 0
        self._augment = training_transform(size, crop, scale, flip, transform)
        self._views = Views(views, self._augment.random)
        self._divide(Subset(fraction, per_class, unlabelled), split_seed)

    def _divide(self, subset: Subset, seed: int) -> None:
        files, test, self.names = listed(self.root)
        self.classes = len(self.names)
        parts = split(torch.tensor([file.label for file in files]), self.val, subset, seed, self.names)
        if len(parts.train) < self.batch_size:
            raise InputError(f"batch_size={self.batch_size} is more than the {len(parts.train)} training images")
        self.train_labels: Tensor = parts.labels
        train = [files[i]._replace(label=label) for i, label in zip(parts.train.tolist(), parts.labels.tolist())]
        held_out = [files[i] for i in parts.held_out.tolist()] or test
        centre = training_transform(self.shape[1], "centre", [1, 1], False, None)
        chosen = {"train": (train, self._augment), "val": (held_out, centre), "test": (test, centre)}
        self.parts = {part: Pictures(of, transform) for part, (of, transform) in chosen.items()}

    @property
    def views(self) -> int:
        """How many views a training image has; 0 if they cannot be counted."""
        return self._views.count

    @property
    def unlabelled(self) -> bool:
        """Whether some training labels are -1, not known."""
        return bool((self.train_labels < 0).any())

    def augmentation(self) -> dict[str, Any]:
        """Everything that decides the pixels of view v of sample i, in plain containers."""
        return {"rule": RULE, **self._augment.describe(), "views": self.views}

    def train_sha256(self) -> str:
        """sha256 of the training files' paths below root, sizes and labels, in their order."""
        return self._digests[0]

    def counts(self) -> dict[str, int]:
        """How many images each part has, and how many of the training images have labels if not all do."""
        counts = {part: len(pictures) for part, pictures in self.parts.items()}
        return {**counts, "labelled": int((self.train_labels >= 0).sum())} if self.unlabelled else counts

    def describe(self) -> dict[str, Any]:
        """Counts, shape and sha256 of all files' paths, sizes and labels, for the run's summary."""
        return {"classes": self.classes, "shape": list(self.shape), **self.counts(), "sha256": self._digests[1]}

    @cached_property
    def _digests(self) -> tuple[str, str]:
        digests = [fingerprint(self.root, self.parts[part].files) for part in ("train", "val", "test")]
        return digests[0], hashlib.sha256("".join(digests).encode()).hexdigest()

    def _loader(self, part: str, start: int = 0) -> Decoded:
        trainer, train = self.trainer, part == "train"
        epoch = (lambda: trainer.current_epoch) if trainer and not overfits(trainer) else int
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        views = self._views if train else None
        pictures = self.parts[part]
        if train and overfits(trainer):  # a view of them could not be counted, as they are not augmented
            pictures, views = Pictures(pictures.files, self.parts["val"].recipe), Views(0, random=True)
        place = (self.seed, epoch, rank, world, start)
        return Decoded(pictures, self.batch_size, self.workers, views, *place)

    def train_dataloader(self) -> Decoded:
        start, self.start = self.start, 0
        return self._loader("train", start)

    def val_dataloader(self) -> Decoded:
        return self._loader("val")

    def test_dataloader(self) -> Decoded:
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        return Batch(*batch)


def fingerprint(root: str, files: list[File]) -> str:
    """sha256 of the files' paths below ``root``, sizes and labels, in their order."""
    digest = hashlib.sha256()
    for file in files:
        try:
            size = os.path.getsize(file.path) if file.length is None else f"{file.offset}+{file.length}"
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        digest.update(f"{Path(file.path).relative_to(root).as_posix()}\t{size}\t{file.label}\n".encode())
    return digest.hexdigest()
