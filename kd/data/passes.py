"""Custom loaders with reproducible passes: their random numbers are a function of (seed, epoch)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from kd.errors import InputError
from kd.rng import ORDER, hashed

log = logging.getLogger(__name__)

States = tuple[Tensor, Any, Any]


def loader_of(make: Callable[[], Any], module: pl.LightningDataModule, part: str, seed: int) -> Any:
    """The result of a module's ``*_dataloader`` as one loader with reproducible passes."""
    loader = make()
    if loader is None or (isinstance(loader, (list, tuple)) and not loader):
        return loader
    several = _several(loader)
    if several is not None and len(several) == 1:
        loader, several = several[0], None
    if several is not None and part == "train":
        raise InputError(f"train_dataloader returns {len(several)} loaders; return one, for example of a ConcatDataset")
    if hasattr(loader, "__next__"):
        raise InputError(f"{part}_dataloader returns an iterator, which can be read once; return an iterable")
    epoch, trainer = partial(_epoch, module), module.trainer
    if several is None and isinstance(loader, DataLoader):
        return _as_seeded(loader, seed, epoch)
    world, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
    if several is None and not isinstance(loader, (list, tuple)):
        return Passes([loader], seed, epoch)  # sharding among processes is its own task
    if several:
        log.info("data: %s_dataloader returns %d loaders: evaluated as one", part, len(several))
    return Passes(several or [loader], seed, epoch, rank, world, part == "train")


def _several(loader: Any) -> list[Any] | None:
    """Several loaders; None if it is a single one, which may be a list of batches."""
    if isinstance(loader, CombinedLoader):
        return list(loader.flattened)
    each = list(loader.values()) if isinstance(loader, Mapping) else loader
    if not isinstance(each, (list, tuple)):
        return None
    data = (Tensor, np.ndarray, list, tuple, Mapping, str)
    return list(each) if all(hasattr(one, "__iter__") and not isinstance(one, data) for one in each) else None


def _epoch(module: pl.LightningDataModule) -> int:
    """The epoch that determines the order: always 0 if the same batches are overfitted."""
    trainer = module.trainer
    return 0 if trainer is None or trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]


class Passes(Iterable[Any]):
    """Chains loaders; ``rank`` of ``world`` processes gets every ``world``-th batch."""

    def __init__(
        self,
        loaders: Sequence[Any],
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world: int = 1,
        train: bool = False,
    ) -> None:
        self.loaders, self.seed, self.epoch = loaders, seed, epoch
        self.generators = {generator: start for loader in loaders for generator, start in _generators(loader).items()}
        self.rank, self.world, self.train = rank, world, train

    def __len__(self) -> int:
        count = sum(len(loader) for loader in self.loaders)
        return count // self.world if self.train else len(range(self.rank, count, self.world))

    def __iter__(self) -> Iterator[Any]:
        batches = apart(self._all, self.seed, self.epoch(), self.generators)
        whole = len(self) * self.world if self.train and self.world > 1 else None
        return islice(batches, self.rank, whole, self.world)

    def _all(self) -> Iterator[Any]:
        for loader in self.loaders:
            yield from loader


def _as_seeded(loader: DataLoader[Any], seed: int, epoch: Callable[[], int]) -> DataLoader[Any]:
    """The same loader, with separately seeded random numbers in each pass.

    Its class is a subclass of the original one, so that Lightning can recreate it with a distributed sampler.
    """
    kind, generators = type(loader), _generators(loader)
    if hasattr(kind, "passes_of"):
        return loader  # already converted

    def passes(self: DataLoader[Any]) -> Iterator[Any]:
        return apart(partial(kind.__iter__, self), seed, epoch(), generators)

    loader.__class__ = type(
        kind.__name__, (kind,), {"__iter__": passes, "passes_of": kind, "__module__": kind.__module__}
    )
    return loader


def _generators(loader: Any) -> dict[torch.Generator, int]:
    """The generators of a loader and its samplers, and their seeds."""
    holders = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = (getattr(holder, "generator", None) for holder in holders)
    return {each: each.initial_seed() for each in generators if isinstance(each, torch.Generator)}


def apart(
    make: Callable[[], Iterator[Any]], seed: int, epoch: int, generators: Mapping[torch.Generator, int] = {}
) -> Iterator[Any]:
    """The items of ``make()``, drawn with global random numbers seeded by (seed, epoch), without effect on others.

    ``generators`` are also seeded, each with its own seed and the epoch.
    """
    outside = _states()
    drawn = _drawn(seed, epoch)
    torch.default_generator.manual_seed(drawn)
    np.random.seed(drawn)
    random.seed(drawn)
    for generator, start in generators.items():
        generator.manual_seed(_drawn(start, epoch))
    inside = _states()
    _go_to(outside)
    iterator = None
    while True:
        outside = _states()
        _go_to(inside)
        try:
            iterator = make() if iterator is None else iterator
            item = next(iterator)
        except StopIteration:
            return
        finally:
            inside = _states()
            _go_to(outside)
        yield item


def _drawn(seed: int, epoch: int) -> int:
    return int(hashed(seed, epoch, torch.tensor(0), ORDER))


def _states() -> States:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _go_to(states: States) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
