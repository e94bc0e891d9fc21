"""Data for Lightning: a resident data set behind a LightningDataModule."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from kd.data.batch import Batch
from kd.data.memory import Loader, Memory


class Data(pl.LightningDataModule):
    """Loaders of a :class:`Memory`, sharded by rank, and its augmentation on the device.

    Any other LightningDataModule serves in its place if it yields ``(images, labels)`` and says ``classes``
    and ``shape``; ``mean`` and ``std`` are used where it has them.
    """

    def __init__(self, memory: Memory, seed: int = 0) -> None:
        super().__init__()
        self.memory, self.seed = memory, seed
        self.classes, self.shape, self.names = memory.classes, memory.shape, memory.names
        self.mean, self.std, self.batch_size = memory.mean, memory.std, memory.batch_size

    def _loader(self, part: str) -> Loader:
        trainer = self.trainer
        if trainer is None:
            return self.memory.loader(part, self.seed)
        epoch = lambda: trainer.current_epoch  # noqa: E731
        return self.memory.loader(part, self.seed, epoch, trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> Loader:
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        batch = Batch(*batch)
        if self.trainer is not None and self.trainer.training:
            return self.memory.augment(batch, self.seed, self.trainer.current_epoch)
        return batch
