"""Images in class folders, decoded by workers: ``root/train/CLASS/*`` and ``root/val/CLASS/*``, as ImageNet has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from kd.data.augment import permutation
from kd.data.batch import Batch
from kd.data.memory import stratified
from kd.errors import InputError


class Images(Dataset[tuple[Tensor, int, int]]):
    """Some of the files of an :class:`ImageFolder`, each as (uint8 image [3, H, W], label, position)."""

    def __init__(self, files: list[tuple[str, int]], transform: Callable[[Tensor], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        path, label = self.files[position]
        try:
            image = decode_image(path, mode=ImageReadMode.RGB)
        except RuntimeError as error:
            raise InputError(f"{path} cannot be decoded: {str(error).splitlines()[0]}") from error
        return self.transform(image), label, position


class Order:
    """The positions of an epoch for one process: a computed permutation, or all in order."""

    def __init__(self, count: int, shuffle: bool, seed: int, epoch: Callable[[], int], rank: int, world: int) -> None:
        self.count, self.shuffle, self.seed, self.epoch, self.rank, self.world = (
            count,
            shuffle,
            seed,
            epoch,
            rank,
            world,
        )

    def __len__(self) -> int:
        return self.count // self.world if self.shuffle else len(range(self.rank, self.count, self.world))

    def __iter__(self) -> Iterator[int]:
        order = permutation(self.count, self.seed, self.epoch()) if self.shuffle else torch.arange(self.count)
        return iter(order[self.rank :: self.world][: len(self)].tolist())


class Folder(pl.LightningDataModule):
    """Class folders behind a LightningDataModule.

    Args:
        root: holds ``train`` and ``val``; what is called val there is the test set here.
        size: height and width of the images given, by random resized crop and flip in training, and by resizing to
            size * 8 / 7 and a centre crop elsewhere.
        batch_size: images per step and process, also in evaluation.
        val: the share of the training images held out for validation, or ``"test"``.
        workers: processes that decode.
        mean: per channel on the [0, 1] scale; ImageNet's unless said otherwise.
        std: likewise.
        seed: of the order.
        split_seed: draws the validation split.

    Raises:
        InputError: absent or empty folders, other classes in ``val`` than in ``train``, numbers out of range.
    """

    def __init__(
        self,
        root: str,
        size: int = 224,
        batch_size: int = 256,
        val: float | str = 0.02,
        workers: int = 4,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        if min(size, batch_size) < 1 or workers < 0:
            raise InputError(
                f"size and batch_size must be at least 1, workers at least 0: {size=} {batch_size=} {workers=}"
            )
        if not (val == "test" or (isinstance(val, float) and 0 < val < 1)):
            raise InputError(f"val must be a share in (0, 1) or 'test', got {val!r}")
        train, test = _listed(Path(root) / "train"), _listed(Path(root) / "val")
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))
            raise InputError(f"{root}: train and val have other classes, first {odd[:3]}")
        self.names, self.classes, self.shape = tuple(train.classes), len(train.classes), (3, size, size)
        self.mean, self.std, self.seed = mean, std, seed
        self.batch_size, self.workers = batch_size, workers
        kept, held_out = torch.arange(len(train.samples)), test.samples
        if isinstance(val, float):
            kept, out = stratified(torch.tensor(train.targets), val, split_seed)
            held_out = [train.samples[i] for i in out.tolist()]
        crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
        centre = v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size)])
        training = [train.samples[i] for i in kept.tolist()]
        files = {"train": (training, crop), "val": (held_out, centre), "test": (test.samples, centre)}
        self.parts = {part: Images(listed, transform) for part, (listed, transform) in files.items()}

    def _loader(self, part: str) -> DataLoader[Any]:
        trainer, images, train = self.trainer, self.parts[part], part == "train"
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        order = Order(len(images), train, self.seed, lambda: trainer.current_epoch if trainer else 0, rank, world)
        pinned = torch.cuda.is_available()
        return DataLoader(
            images, self.batch_size, sampler=order, num_workers=self.workers, drop_last=train, pin_memory=pinned
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        return Batch(*batch)


def _listed(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except (FileNotFoundError, OSError) as error:
        raise InputError(f"data.root: {folder} holds no class folders with images: {error}") from error
