"""Data for Lightning: a resident data set behind a LightningDataModule."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from kd.data.batch import Batch
from kd.data.loader import Loader
from kd.data.memory import Memory


class Data(pl.LightningDataModule):
    """Loaders of a :class:`Memory`, sharded by rank, and its augmentation on the device.

    Any other LightningDataModule serves in its place if it yields ``(images, labels)`` and says ``classes``
    and ``shape``; ``mean`` and ``std`` are used where it has them.

    Attributes:
        start: how many samples of the epoch, over all processes, the next training loader's first pass leaves out;
            set it before a run goes on in the middle of an epoch.
    """

    checked = True  # batches come as they must be, and need not be looked at

    def __init__(self, memory: Memory, seed: int = 0) -> None:
        super().__init__()
        self.memory, self.seed, self.start = memory, seed, 0
        self.classes, self.shape, self.names = memory.classes, memory.shape, memory.names
        self.mean, self.std, self.val = memory.mean, memory.std, memory.val

    @property
    def batch_size(self) -> int:
        """Images per step and process; of loaders that are made from now on, where it is set."""
        return self.memory.batch_size

    @batch_size.setter
    def batch_size(self, count: int) -> None:
        self.memory.batch_size = min(count, len(self.train_labels))

    @property
    def drop_last(self) -> bool:
        """Whether the rest of an epoch that is no whole batch is left out."""
        return self.memory.drop_last

    @property
    def views(self) -> int:
        """How many views a training image has; 0 if they cannot be counted."""
        return self.memory.views

    @property
    def mixed(self) -> bool:
        """Whether training labels come as probabilities [B, classes]."""
        return self.memory.mixed

    @property
    def train_labels(self) -> Tensor:
        """The training set's class numbers [N], -1 where not known."""
        return self.memory.parts["train"][1]

    def augmentation(self) -> dict[str, Any]:
        """Everything that decides the pixels of view v of sample i, in plain containers."""
        return self.memory.augmentation()

    def train_sha256(self) -> str:
        """sha256 of the training images in their order."""
        return self.memory.train_sha256()

    def counts(self) -> dict[str, int]:
        """How many images each part has."""
        return self.memory.counts()

    def describe(self) -> dict[str, Any]:
        """Counts, shape and sha256 for the run's summary."""
        return self.memory.describe()

    def _loader(self, part: str, start: int = 0) -> Loader:
        trainer = self.trainer
        if trainer is None:
            return self.memory.loader(part, self.seed, start=start)
        epoch = (lambda: 0) if overfits(trainer) else (lambda: trainer.current_epoch)
        where = trainer.strategy.root_device
        return self.memory.loader(part, self.seed, epoch, trainer.global_rank, trainer.world_size, start, where)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The positions [n] that this process meets in an epoch, in their order, and the view of each."""
        loader = self._loader("train")
        index, time = loader.order(epoch)
        return index, self.memory.view_of(index, time, self.seed, epoch)

    def train_dataloader(self) -> Loader:
        start, self.start = self.start, 0
        return self._loader("train", start)

    def val_dataloader(self) -> Loader:
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Batch:
        return Batch(*batch).each(lambda part: part.to(device, non_blocking=True))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        batch = Batch(*batch)
        if self.trainer is not None and self.trainer.training and not overfits(self.trainer):
            return self.memory.augment(batch, self.seed, self.trainer.current_epoch)
        return batch


def overfits(trainer: pl.Trainer | None) -> bool:
    """Whether the same batches are trained on in each epoch, without augmentation (``trainer.overfit_batches``)."""
    return trainer is not None and bool(trainer.overfit_batches)  # type: ignore[attr-defined]
