"""Images in files, decoded by workers: class folders like ImageNet's, or webdataset's shards."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kd.data import option_defaults
from kd.data.augment import RULE
from kd.data.batch import Batch
from kd.data.class_counts import account
from kd.data.content import Content
from kd.data.datamodule import ImageData, overfits
from kd.data.decode import Reading
from kd.data.division import Roles, divided
from kd.data.image_files import ImageFileLoader, ImageFiles, Views, training_transform
from kd.data.listing import Listing, listed
from kd.data.loader import check_last
from kd.data.sampler import check_sampler
from kd.data.split import Subset
from kd.errors import InputError, unknown
from kd.registry import modules

DAMAGED = ("refuse", "skip")
FIRST = 2  # images of the first batch of a part


@modules.register("folder")
class Folder(ImageData):
    """A LightningDataModule for images in files.

    Options that are None are derived from the data; see :mod:`kd.data.option_defaults`.

    Args:
        root: contains parts of class folders, class folders, or shards. See :func:`~kd.data.listing.listed`.
        size: height and width of the network's input: in training by ``crop``, in evaluation by resizing to
            size * 8 / 7 and a centre crop. None for the median of the images, at most 224.
        batch_size: images per step and process, also in evaluation. None for 8 to 256.
        train: the training part, a folder or a csv file of path and label below ``root``, if it has another name;
            ``none`` if there is only a test part.
        val: the fraction of the training images held out for validation, ``"test"``, or the validation part as a folder
            or csv file. None for the part with that name, beside a test part; otherwise for a fraction of 0.02 to 0.2.
        test: the test part as a folder or csv file, or the fraction of the training images drawn for it. None for the
            part with that name, otherwise for a fraction.
        fraction: the fraction of each class's remaining training images to use; see :class:`~kd.data.split.Subset`.
        per_class: number of training images of each class that are used; 0 for all.
        unlabelled: whether the images outside that subset stay in the training set, without their labels.
        workers: number of decoding processes. None for one per CPU, at most 4.
        crop: ``resized`` for a random resized crop (Szegedy et al. 2015, arXiv:1409.4842), ``centre`` for the
            evaluation crop.
        scale: the minimum and maximum fraction of the image area in the random crop.
        flip: whether half of the images are flipped horizontally.
        transform: applied afterwards, such as ``randaugment``; see :mod:`kd.data.transforms`.
        views: number of augmentations of each image, drawn once for all runs; 0 for a new one each epoch.
        sampler: ``balanced`` samples every class equally often; see :func:`~kd.data.sampler.balanced`.
        mean: per channel on the [0, 1] scale; by default ImageNet's.
        std: likewise.
        exif: whether the EXIF orientation is applied.
        background: the colour behind transparent pixels.
        white: the white level of images with more than 8 bits; None for the maximum of their format.
        damaged: ``refuse`` images that cannot be decoded, or ``skip`` them: then all are decoded once at the start.
        seed: of the order and the augmentation.
        split_seed: seed of the validation split, the test split and the subset.
        drop_last: whether the last incomplete batch of an epoch is dropped; otherwise it is a smaller batch.

    Attributes:
        resolved: ``size`` and ``batch_size``, where they were None.
        shares: fractions of ``test`` and ``val``, where these parts are drawn.

    Raises:
        InputError: absent or empty folders, classes that ``train`` does not have, numbers out of range.
    """

    checked = True
    subset_of_classes = True  # of images to test on, some classes may be absent
    start: int
    batch_size: int
    train_labels: Tensor
    names: tuple[str, ...]

    def __init__(
        self,
        root: str,
        size: int | None = None,
        batch_size: int | None = None,
        train: str | None = None,
        val: float | str | None = None,
        test: float | str | None = None,
        fraction: float = 1.0,
        per_class: int = 0,
        unlabelled: bool = False,
        workers: int | None = None,
        crop: str = "resized",
        scale: list[float] = [0.08, 1.0],  # noqa: B006 (never changed; Hydra shows it)
        flip: bool = True,
        transform: Any = None,
        views: int = 0,
        sampler: str | None = None,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        exif: bool = True,
        background: str = "white",
        white: float | None = None,
        damaged: str = "refuse",
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        _check(size, batch_size, workers, sampler)
        self.sampler, self.drop_last, self.reading = sampler, drop_last, Reading(exif, background, white)
        self.root, self.mean, self.std, self.seed, self.start = root, mean, std, seed, 0
        self.workers = option_defaults.workers() if workers is None else workers
        self.content, self.val = Content(root), val
        listing = self._listing(train, val, test, damaged)
        roles = divided(listing, val, test, Subset(fraction, per_class, unlabelled), split_seed)
        self._scale(roles, size, batch_size)
        self._augment = training_transform(self.shape[1], crop, scale, flip, transform)
        self._views = Views(views, self._augment.random)
        self._divide(roles, listing.names)

    def _scale(self, roles: Roles, size: int | None, batch_size: int | None) -> None:
        """Sets size and batch size, derived from the data where they are None."""
        files = roles.train or roles.test
        option_defaults.check_values(files, self.reading)
        self.resolved = {} if size else {"size": option_defaults.size_of(files)}
        self.resolved |= {} if batch_size else {"batch_size": option_defaults.batch_of(len(roles.train))}
        size = size or self.resolved["size"]
        self.shape, self.batch_size = (3, size, size), batch_size or self.resolved["batch_size"]
        if roles.train and len(roles.train) < self.batch_size:
            raise InputError(f"batch_size={self.batch_size} exceeds the {len(roles.train)} training images")
        if roles.train:
            check_last(len(roles.train), self.batch_size, self.drop_last)

    def _divide(self, roles: Roles, names: tuple[str, ...]) -> None:
        self.names, self.classes, self.shares, self.views = names, len(names), roles.shares, self._views.count
        self.train_labels = torch.tensor([file.label for file in roles.train], dtype=torch.int64)
        centre = training_transform(self.shape[1], "centre", [1, 1], False, None)
        chosen = {"train": (roles.train, self._augment), "val": (roles.val, centre), "test": (roles.test, centre)}
        self.parts = {part: ImageFiles(of, how, self.reading) for part, (of, how) in chosen.items()}
        self._notes = roles.notes

    def _listing(self, train: str | None, val: float | str | None, test: float | str | None, damaged: str) -> Listing:
        """The files below the root, without damaged ones if these are skipped."""
        self.reading.check()
        if damaged not in DAMAGED:
            raise unknown("data.damaged", damaged, DAMAGED)
        listing = listed(self.root, train, text(val), text(test), validates=val is None or text(val) is not None)
        if damaged == "refuse":
            return listing
        notes, sound = list(listing.notes), []
        for part, files in (("train", listing.train), ("test", listing.test), ("val", listing.val)):
            faults = self.content.damaged(files, self.reading)
            sound.append([file for file, fault in zip(files, faults) if not fault])
            if messages := [fault for fault in faults if fault]:
                notes.append(f"skipped: damaged images of {part} ({len(messages):,}), first {messages[0]}")
            if len(files) and not sound[-1]:
                raise InputError(f"no image of {part} can be decoded: {messages[0]}")
        train_files, test_files, val_files = sound
        return Listing(train_files, test_files, listing.names, val_files, tuple(notes))

    @property
    def unlabelled(self) -> bool:
        """Whether some training labels are -1 (unknown)."""
        return bool((self.train_labels < 0).any())

    def augmentation(self) -> dict[str, Any]:
        """Everything that determines the pixels of view v of sample i, in plain containers."""
        reading = self.reading._asdict()
        return {"rule": RULE, "reading": reading, **self._augment.describe(), "views": self.views}

    def train_sha256(self) -> str:
        """sha256 of the training files' paths below root, sizes, labels and content, in order."""
        return self._digests[0]

    def counts(self) -> dict[str, int]:
        """Number of images of each part, and of labelled training images if not all are."""
        counts = {part: len(image_files) for part, image_files in self.parts.items()}
        return {**counts, "labelled": int((self.train_labels >= 0).sum())} if self.unlabelled else counts

    def describe(self) -> dict[str, Any]:
        """Counts, shape and sha256 of all files' paths, sizes, labels and content, for the run's summary."""
        return {"classes": self.classes, "shape": list(self.shape), **self.counts(), "sha256": self._digests[1]}

    @cached_property
    def _digests(self) -> tuple[str, str]:
        digests = [self.content.fingerprint(self.parts[part].files) for part in ("train", "val", "test")]
        return digests[0], hashlib.sha256("".join(digests).encode()).hexdigest()

    def account(self) -> list[str]:
        """Lines printed when a run starts: images per class, skipped files, duplicates, derived options."""
        parts = {part: image_files.files for part, image_files in self.parts.items() if image_files.files}
        if parts.get("val") is parts.get("test"):
            parts.pop("val", None)
        lines = [*account(parts, self.names), *self._notes, *self.content.duplicates(parts)]
        options = " ".join(f"data.{key}={value}" for key, value in self.resolved.items())
        return [*lines, *([f"derived from the data: {options}"] if options else [])]

    def first_batch(self, part: str) -> Batch:
        return Batch(*next(iter(ImageFileLoader(self.parts[part], FIRST, 0, None, self.seed))))

    def labels(self, part: str) -> Tensor:
        return torch.tensor([file.label for file in self.parts[part].files], dtype=torch.int64)

    def image(self, part: str, position: int) -> Tensor:
        return self.parts[part][position, 0, 0][0]

    def _loader(self, part: str, start: int = 0) -> ImageFileLoader:
        if not self.parts[part].files:
            raise InputError(f"data.root={self.root} has no {part} part, only a test part")
        trainer, train = self.trainer, part == "train"
        epoch = (lambda: trainer.current_epoch) if trainer and not overfits(trainer) else int
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        views = self._views if train else None
        image_files = self.parts[part]
        if train and overfits(trainer):  # without augmentation
            image_files, views = (
                ImageFiles(image_files.files, self.parts["val"].pipeline, self.reading),
                Views(0, random=True),
            )
        order = (self.seed, epoch, rank, world, start)
        balance = self.train_labels if train and self.sampler and not overfits(trainer) else None
        return ImageFileLoader(image_files, self.batch_size, self.workers, views, *order, self.drop_last, balance)

    def train_dataloader(self) -> ImageFileLoader:
        start, self.start = self.start, 0
        return self._loader("train", start)

    def val_dataloader(self) -> ImageFileLoader:
        return self._loader("val")

    def test_dataloader(self) -> ImageFileLoader:
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        return Batch(*batch)


def text(value: float | str | None) -> str | None:
    """The name of a part, if an option gives one; None for a fraction or ``test``."""
    return value if isinstance(value, str) and value != "test" else None


def _check(size: int | None, batch_size: int | None, workers: int | None, sampler: str | None) -> None:
    check_sampler(sampler)
    if min(1 if number is None else number for number in (size, batch_size)) < 1 or (workers or 0) < 0:
        numbers = f"{size=} {batch_size=} {workers=}"
        raise InputError(f"size and batch_size must be at least 1, workers at least 0: {numbers}")
