"""Images in files, decoded by workers: class folders as ImageNet has them, or webdataset's shards."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from kd.data import scaled
from kd.data.account import account
from kd.data.augment import RULE
from kd.data.batch import Batch
from kd.data.content import Content
from kd.data.datamodule import overfits
from kd.data.decode import Reading
from kd.data.division import Roles, divided
from kd.data.image_files import Decoded, ImageFiles, Views, training_transform
from kd.data.listing import Listing, listed
from kd.data.loader import check_last
from kd.data.sampler import check_sampler
from kd.data.split import Subset
from kd.errors import InputError, unknown
from kd.registry import modules

DAMAGED = ("refuse", "skip")


@modules.register("folder")
class Folder(pl.LightningDataModule):
    """Images in files behind a LightningDataModule.

    What is None is scaled to the data; see :mod:`kd.data.scaled`.

    Args:
        root: holds parts of class folders, class folders, or shards. See :func:`~kd.data.listing.listed`.
        size: height and width of the images given: in training by ``crop``, elsewhere by resizing to size * 8 / 7
            and a centre crop. None for that of the pictures, at most 224.
        batch_size: images per step and process, also in evaluation. None for 8 to 256.
        train: the training part, a folder or a csv file of path and label below ``root``, where it is not called so;
            ``none`` where there is a test part alone.
        val: the share of the training images held out for validation, ``"test"``, or the validation part as a folder or
            csv file. None for the part that is called so, beside a test part; else for a share of 0.02 to 0.2.
        test: the test part as a folder or csv file, or the share of the training images that is drawn for it. None for
            the part that is called so, else for a share.
        fraction: the share of each class's remaining training images that is used; see :class:`~kd.data.split.Subset`.
        per_class: how many training images of each class are used; 0 for all.
        unlabelled: whether the rest of that subset stays in the training set, without its labels.
        workers: processes that decode. None for as many as there are processors, up to 4.
        crop: ``resized`` for a random resized crop (Szegedy et al. 2015, arXiv:1409.4842), ``centre`` for the crop of
            evaluation.
        scale: the least and the largest share of the picture that the random crop takes.
        flip: whether half of the images are flipped horizontally.
        transform: what comes after them, such as ``randaugment``; see :mod:`kd.data.transforms`.
        views: how many augmentations each image has, drawn once for all runs; 0 for a new one each epoch.
        sampler: ``balanced`` gives every class equally often; see :func:`~kd.data.sampler.balanced`.
        mean: per channel on the [0, 1] scale; ImageNet's unless said otherwise.
        std: likewise.
        exif: whether pictures are turned as their EXIF orientation says.
        background: the colour behind transparent pixels.
        white: the value that is white in pictures of more than 8 bits; the largest that their format has if None.
        damaged: ``refuse`` pictures that cannot be decoded, or ``skip`` them: then all are decoded once at the start.
        seed: of the order and the augmentation.
        split_seed: draws the validation split, the test split and the subset.
        drop_last: whether the rest of an epoch that is no whole batch is left out; else it is a smaller batch.

    Attributes:
        start: as of :class:`~kd.data.datamodule.Data`.
        resolved: ``size`` and ``batch_size``, where they were None.
        shares: of ``test`` and ``val``, where they are drawn for want of a part.

    Raises:
        InputError: absent or empty folders, classes that ``train`` does not have, numbers out of range.
    """

    mixed = False
    checked = True  # batches come as they must be, and need not be looked at

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
        self.content, self.val, self.workers = Content(root), val, scaled.workers() if workers is None else workers
        found = self._found(train, val, test, damaged)
        roles = divided(found, val, test, Subset(fraction, per_class, unlabelled), split_seed)
        self._scale(roles, size, batch_size)
        self._augment = training_transform(self.shape[1], crop, scale, flip, transform)
        self._views = Views(views, self._augment.random)
        self._divide(roles, found.names)

    def _scale(self, roles: Roles, size: int | None, batch_size: int | None) -> None:
        """Size and batch size, of the data's own scale where they are not given."""
        some = roles.train or roles.test
        scaled.look(some, self.reading)
        self.resolved = {} if size else {"size": scaled.size_of(some)}
        self.resolved |= {} if batch_size else {"batch_size": scaled.batch_of(len(roles.train))}
        size = size or self.resolved["size"]
        self.shape, self.batch_size = (3, size, size), batch_size or self.resolved["batch_size"]
        if roles.train and len(roles.train) < self.batch_size:
            raise InputError(f"batch_size={self.batch_size} is more than the {len(roles.train)} training images")
        if roles.train:
            check_last(len(roles.train), self.batch_size, self.drop_last)

    def _divide(self, roles: Roles, names: tuple[str, ...]) -> None:
        self.names, self.classes, self.shares = names, len(names), roles.shares
        self.train_labels: Tensor = torch.tensor([file.label for file in roles.train], dtype=torch.int64)
        centre = training_transform(self.shape[1], "centre", [1, 1], False, None)
        chosen = {"train": (roles.train, self._augment), "val": (roles.val, centre), "test": (roles.test, centre)}
        self.parts = {part: ImageFiles(of, how, self.reading) for part, (of, how) in chosen.items()}
        self._notes = roles.notes

    def _found(self, train: str | None, val: float | str | None, test: float | str | None, damaged: str) -> Listing:
        """The files below the root, without those that are damaged if these are to be skipped."""
        self.reading.check()
        if damaged not in DAMAGED:
            raise unknown("data.damaged", damaged, DAMAGED)
        found = listed(self.root, train, text(val), text(test), validates=val is None or text(val) is not None)
        if damaged == "refuse":
            return found
        notes, sound = list(found.notes), []
        for part, files in (("train", found.train), ("test", found.test), ("val", found.val)):
            faults = self.content.damaged(files, self.reading)
            sound.append([file for file, fault in zip(files, faults) if not fault])
            if said := [fault for fault in faults if fault]:
                notes.append(f"left out: damaged pictures of {part} ({len(said):,}), first {said[0]}")
            if len(files) and not sound[-1]:
                raise InputError(f"no picture of {part} can be decoded: {said[0]}")
        train_files, test_files, val_files = sound
        return Listing(train_files, test_files, found.names, val_files, tuple(notes))

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
        reading = self.reading._asdict()
        return {"rule": RULE, "reading": reading, **self._augment.describe(), "views": self.views}

    def train_sha256(self) -> str:
        """sha256 of the training files' paths below root, sizes, labels and content, in their order."""
        return self._digests[0]

    def counts(self) -> dict[str, int]:
        """How many images each part has, and how many of the training images have labels if not all do."""
        counts = {part: len(pictures) for part, pictures in self.parts.items()}
        return {**counts, "labelled": int((self.train_labels >= 0).sum())} if self.unlabelled else counts

    def describe(self) -> dict[str, Any]:
        """Counts, shape and sha256 of all files' paths, sizes, labels and content, for the run's summary."""
        return {"classes": self.classes, "shape": list(self.shape), **self.counts(), "sha256": self._digests[1]}

    @cached_property
    def _digests(self) -> tuple[str, str]:
        digests = [self.content.fingerprint(self.parts[part].files) for part in ("train", "val", "test")]
        return digests[0], hashlib.sha256("".join(digests).encode()).hexdigest()

    def account(self) -> list[str]:
        """What there is to say of the data when a run starts, in lines: classes, what is left out, what lies twice."""
        parts = {part: pictures.files for part, pictures in self.parts.items() if pictures.files}
        if parts.get("val") is parts.get("test"):
            parts.pop("val", None)
        lines = [*account(parts, self.names), *self._notes, *self.content.twice(parts)]
        options = " ".join(f"data.{key}={value}" for key, value in self.resolved.items())
        return [*lines, *([f"scaled to the data: {options}"] if options else [])]

    def _loader(self, part: str, start: int = 0) -> Decoded:
        if not self.parts[part].files:
            raise InputError(f"data.root={self.root} has no part {part}: it is a test part alone")
        trainer, train = self.trainer, part == "train"
        epoch = (lambda: trainer.current_epoch) if trainer and not overfits(trainer) else int
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        views = self._views if train else None
        pictures = self.parts[part]
        if train and overfits(trainer):  # a view of them could not be counted, as they are not augmented
            pictures, views = ImageFiles(pictures.files, self.parts["val"].recipe, self.reading), Views(0, random=True)
        place = (self.seed, epoch, rank, world, start)
        balance = self.train_labels if train and self.sampler and not overfits(trainer) else None
        return Decoded(pictures, self.batch_size, self.workers, views, *place, self.drop_last, balance)

    def train_dataloader(self) -> Decoded:
        start, self.start = self.start, 0
        return self._loader("train", start)

    def val_dataloader(self) -> Decoded:
        return self._loader("val")

    def test_dataloader(self) -> Decoded:
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        return Batch(*batch)


def text(value: float | str | None) -> str | None:
    """The name of a part, if an option gives one and not a share or the word ``test``."""
    return value if isinstance(value, str) and value != "test" else None


def _check(size: int | None, batch_size: int | None, workers: int | None, sampler: str | None) -> None:
    check_sampler(sampler)
    if min(1 if number is None else number for number in (size, batch_size)) < 1 or (workers or 0) < 0:
        numbers = f"{size=} {batch_size=} {workers=}"
        raise InputError(f"size and batch_size must be at least 1, workers at least 0: {numbers}")
