"""Image files decoded by workers, each augmented from its own seed, so the number of workers changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from kd.data.batch import Batch
from kd.data.decode import PLAIN, File, Reading, decode
from kd.data.loader import shard
from kd.data.sampler import balanced, rounds
from kd.data.transforms import described, seeds_kept, transform_of
from kd.errors import InputError, unknown
from kd.rng import TRANSFORM, VIEW, VIEWS, below, hashed

CROPS = ("resized", "centre")
Key = tuple[int, int, int]  # position, view (-1: not enumerated), seed


class Pipeline:
    """From a decoded image to the network's input: a crop, possibly a flip, and further transforms."""

    def __init__(self, steps: list[Callable[[Tensor], Tensor]], random: bool) -> None:
        self.steps, self.random = steps, random

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """The image [3, size, size], a function of the decoded image and the seed."""
        with seeds_kept() as generator:
            generator.manual_seed(seed)
            for step in self.steps:
                image = step(image)
        return image

    def describe(self) -> dict[str, Any]:
        """The steps with all their options, and torchvision's version, in plain containers."""
        return {"torchvision": torchvision.__version__, "steps": described(self.steps)}


def training_transform(size: int, crop: str, scale: Sequence[float], flip: bool, transform: Any) -> Pipeline:
    """The pipeline for the options of :class:`~kd.data.folder.Folder`.

    Raises:
        InputError: an unknown crop or transform, a scale out of range, or a transform that changes size or dtype.
    """
    if crop not in CROPS:
        raise unknown("crop", crop, CROPS)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale must be two fractions 0 < minimum <= maximum <= 1, got {list(scale)}")
    resized = v2.RandomResizedCrop(size, scale=tuple(scale), antialias=True)
    centre = [v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size)]
    steps: list[Any] = [resized] if crop == "resized" else centre
    steps += [v2.RandomHorizontalFlip()] if flip else []
    steps += [transform_of(transform)] if transform else []
    pipeline = Pipeline(steps, crop == "resized" or flip or bool(transform))
    example = pipeline(torch.zeros(3, size, size, dtype=torch.uint8), 0)
    if example.dtype != torch.uint8 or example.shape != (3, size, size):
        output = f"{example.dtype} {list(example.shape)}"
        raise InputError(f"data.transform={transform} must keep uint8 images [3, {size}, {size}], returns {output}")
    return pipeline


class Views:
    """Draws the view of each sample, and the seed of its pixels.

    Args:
        keep: number of views of each sample, drawn once for all runs; 0 for a new one each epoch.
        random: whether the pipeline makes any random choice.
    """

    def __init__(self, keep: int, random: bool) -> None:
        if keep < 0:
            raise InputError(f"views must be at least 1, or 0 for a new one each epoch; got {keep}")
        self.keep = keep
        self.count = keep or (0 if random else 1)

    def keys(self, index: Tensor, seed: int, epoch: int | Tensor) -> list[Key]:
        """Position, view and seed for each position in ``index`` [n]; ``epoch`` may differ between positions."""
        view = torch.full_like(index, -1 if self.count == 0 else 0)
        drawn = epoch
        if self.keep:
            view = below(self.keep, hashed(seed, epoch, index, VIEW))
            seed, drawn = VIEWS, view
        return list(zip(index.tolist(), view.tolist(), hashed(seed, drawn, index, TRANSFORM).tolist()))


class ImageFiles(Dataset[Any]):
    """Files as (uint8 image [3, H, W], label, position, view)."""

    def __init__(self, files: list[File], pipeline: Pipeline, reading: Reading = PLAIN) -> None:
        self.files, self.pipeline, self.reading = files, pipeline, reading

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int, int]:
        position, view, seed = key
        file = self.files[position]
        return self.pipeline(decode(file, self.reading), seed), file.label, position, view

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        try:
            return [self[key] for key in keys]
        except InputError as error:
            return [error]  # an exception raised in a worker would carry its traceback in the message


def collate(samples: list[Any]) -> Batch | InputError:
    """Samples as a batch, or the error of one of them."""
    if isinstance(samples[0], InputError):
        return samples[0]
    images, *numbers = zip(*samples)
    labels, index, view = map(torch.tensor, numbers)
    return Batch(torch.stack(images), labels, index, view if view[0] >= 0 else None)


class Keys:
    """The sampler: the keys of each pass in order, equally many for each process in training.

    Arguments as of :class:`~kd.data.loader.Loader`; ``views`` None for evaluation.
    """

    def __init__(
        self,
        count: int,
        views: Views | None,
        seed: int,
        epoch: Callable[[], int],
        rank: int,
        world: int,
        start: int,
        balance: Tensor | None = None,
    ) -> None:
        self.count, self.views, self.seed, self.epoch = count, views, seed, epoch
        self.rank, self.world, self.start, self.balance = rank, world, start, balance

    def __len__(self) -> int:
        if self.views is not None:
            return self.count // self.world
        return len(range(self.rank, self.count, self.world))

    def __iter__(self) -> Iterator[Key]:
        start, self.start = self.start, 0
        epoch = self.epoch()
        if self.balance is not None and self.views is not None:
            order, times = (each[start:][self.rank :: self.world] for each in balanced(self.balance, self.seed, epoch))
            size, repeats = (self.count - start) // self.world, rounds(self.balance)
            for chunk, time in zip(order[:size].split(4096), times[:size].split(4096)):
                yield from self.views.keys(chunk, self.seed, epoch * repeats + time)
            return
        order = shard(self.count, self.views is not None, self.seed, epoch, self.rank, self.world, start)
        if self.views is None:
            yield from ((position, -1, 0) for position in order.tolist())
            return
        for chunk in order[: (self.count - start) // self.world].split(4096):
            yield from self.views.keys(chunk, self.seed, epoch)


class ImageFileLoader:
    """A sized iterable over image files; arguments as of :class:`~kd.data.loader.Loader`.

    ``views`` draws the views of training samples; None for evaluation, in order and unpadded.
    """

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        workers: int,
        views: Views | None,
        seed: int = 0,
        epoch: Callable[[], int] = int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        drop_last: bool = True,
        balance: Tensor | None = None,
    ) -> None:
        # workers end with each pass: persistent ones, in a reference cycle, can block at exit
        self.loader: DataLoader[Any] = DataLoader(
            files,
            batch_size,
            sampler=Keys(len(files), views, seed, epoch, rank, world, start, balance),
            num_workers=workers,
            collate_fn=collate,
            drop_last=views is not None and drop_last,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch
