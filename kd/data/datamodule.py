"""Data modules: what kd reads of them, and data in memory behind Lightning's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from kd.data.batch import Batch
from kd.data.loader import Loader
from kd.data.memory import Memory
from kd.errors import InputError


class ImageData(pl.LightningDataModule):
    """A data module as kd reads it: only ``classes``, ``shape`` and the loaders are required.

    Any LightningDataModule may define the attributes and methods of this class; see :func:`image_data`. Those of
    ``KD_ONLY`` belong to kd's own data modules.

    Attributes:
        classes: number of classes.
        shape: [C, H, W] of the images.
        names: the class names.
        mean: per channel on the [0, 1] scale; used to normalise in front of each network.
        std: likewise.
        train_labels: class numbers [N] of the training set, -1 where unknown.
        mixed: whether training labels are probabilities [B, classes].
        views: number of views of a training image; 0 if they cannot be enumerated.
        start: number of samples of the epoch, over all processes, that the first pass of the next training loader
            skips; set before a run resumes in mid-epoch. None if the module cannot skip samples.
        batch_size: images per step and process.
        drop_last: whether the last incomplete batch of an epoch is dropped.
        resolved: options that were null in the configuration, with the values derived from the data.
        checked: whether the loaders yield valid :class:`Batch` es, which are not inspected again.
        parts: the images of ``train``, ``val`` and ``test``.
        memory: the images, if they are held in memory.
        val: the option ``val``.
        subset_of_classes: whether the data may lack some of a student's classes.
    """

    classes: int
    shape: tuple[int, ...]
    names: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    train_labels: Tensor | None = None
    mixed = False
    views = 0
    start: int | None = None
    batch_size: int | None = None
    drop_last = True
    resolved: Mapping[str, Any] = {}
    checked = False

    parts: Mapping[str, Any] = {}
    memory: Memory | None = None
    val: float | str | None = None
    subset_of_classes = False

    def counts(self) -> dict[str, int]:
        """Number of images of each part, and of labelled training images if not all are; empty if unknown."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Counts, shape and sha256 for the run's summary; empty if unknown."""
        return {}

    def augmentation(self) -> dict[str, Any] | None:
        """Everything that determines the pixels of view v of sample i, in plain containers; None if unknown."""
        return None

    def train_sha256(self) -> str | None:
        """sha256 of the training images in order; None if unknown."""
        return None

    def plan(self, epoch: int) -> tuple[Tensor, Tensor] | None:
        """The positions [n] that this process loads in an epoch, in order, and the view of each; None if unknown."""
        return None

    def account(self) -> list[str]:
        """Lines about the data set that are printed when a run starts."""
        return []

    def first_batch(self, part: str) -> Batch | None:
        """Some images of a part, loaded in this process; None if only the loaders can give them."""
        return None

    def labels(self, part: str) -> Tensor:
        """The class numbers [N] of a part.

        Raises:
            InputError: a custom data module, whose samples only its loaders can give.
        """
        raise InputError(f"the labels of a {type(self).__name__} cannot be looked up")

    def image(self, part: str, position: int) -> Tensor:
        """One image [C, H, W] of a part, without augmentation.

        Raises:
            InputError: a custom data module, whose samples only its loaders can give.
        """
        raise InputError(f"the images of a {type(self).__name__} cannot be looked up by position")

    @property
    def lightning(self) -> pl.LightningDataModule:
        """The data module to pass to a trainer."""
        return self


KD_ONLY = frozenset(
    ("parts", "memory", "val", "subset_of_classes", "account", "first_batch", "labels", "image", "lightning")
)


class CustomData(ImageData):
    """Another data module, read through the defaults of :class:`ImageData`; attributes are set on that module."""

    def __init__(self, module: Any) -> None:
        object.__setattr__(self, "_module", module)

    def __getattribute__(self, name: str) -> Any:
        module = object.__getattribute__(self, "_module")
        if name == "lightning":
            return module
        if name not in KD_ONLY:
            try:
                return getattr(module, name)
            except AttributeError:
                pass  # also a property that is known after setup only
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_module"), name, value)


def image_data(module: Any) -> ImageData:
    """A data module of any kind, or None, with the interface of :class:`ImageData`."""
    return module if isinstance(module, ImageData) else CustomData(module)


def data_of(trainer: Any) -> ImageData:
    """The data module of a trainer; all of its attributes have their defaults if the trainer has none."""
    return image_data(getattr(trainer, "datamodule", None))


class Data(ImageData):
    """Loaders of a :class:`Memory`, sharded by rank, and its augmentation on the device."""

    checked = True
    start: int
    memory: Memory
    names: tuple[str, ...]

    def __init__(self, memory: Memory, seed: int = 0) -> None:
        super().__init__()
        self.memory, self.seed, self.start = memory, seed, 0
        for name in FORWARDED:
            setattr(self, name, getattr(memory, name))

    @property
    def batch_size(self) -> int:
        """Images per step and process; setting it affects loaders that are created afterwards."""
        return self.memory.batch_size

    @batch_size.setter
    def batch_size(self, count: int) -> None:
        self.memory.batch_size = min(count, len(self.memory.train_labels))

    def first_batch(self, part: str) -> Batch:
        return Batch(*next(iter(self.memory.loader(part, self.seed))))

    def labels(self, part: str) -> Tensor:
        return self.memory.parts[part][1]

    def image(self, part: str, position: int) -> Tensor:
        return self.memory.parts[part][0][position]

    def _loader(self, part: str, start: int = 0) -> Loader:
        trainer = self.trainer
        if trainer is None:
            return self.memory.loader(part, self.seed, start=start)
        epoch = (lambda: 0) if overfits(trainer) else (lambda: trainer.current_epoch)
        device = trainer.strategy.root_device
        return self.memory.loader(part, self.seed, epoch, trainer.global_rank, trainer.world_size, start, device)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
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


FORWARDED = (  # members of Memory that Data has too
    *("classes", "shape", "names", "mean", "std", "val", "parts", "train_labels", "mixed", "views", "drop_last"),
    *("counts", "describe", "augmentation", "train_sha256"),
)


def overfits(trainer: pl.Trainer | None) -> bool:
    """Whether training uses the same batches in each epoch, without augmentation (``trainer.overfit_batches``)."""
    return trainer is not None and bool(trainer.overfit_batches)  # type: ignore[attr-defined]
