"""A LightningDataModule of one's own: what kd has to know of it, and loaders whose order is a function of the seed."""

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
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from kd.data.adapt import parts_of
from kd.data.arrays import CHANNELS, images_of, named
from kd.data.streams import ORDER
from kd.errors import InputError
from kd.hashing import hashed

log = logging.getLogger(__name__)

States = tuple[Tensor, Any, Any]
PARTS = ("train", "val", "test")


def adopted(module: pl.LightningDataModule, seed: int) -> pl.LightningDataModule:
    """The same module, which from now on says ``classes`` and ``shape`` and loads in an order computed from the seed.

    ``classes`` may be called ``num_classes``, or be the list of the classes' names; the shape is that of the first
    training image where the module does not say it. The module is prepared and set up for that.

    Each pass over a part is a function of (seed, epoch), whatever was drawn before, so that two runs with the same seed
    see the same batches; what ``setup`` draws is a function of the seed.

    Raises:
        InputError: the module does not say how many classes there are, or what it says does not fit together.
    """
    module.setup = partial(_seeded_setup, module.setup, seed)  # type: ignore[method-assign]
    for part in PARTS:
        name = f"{part}_dataloader"
        if is_overridden(name, module, pl.LightningDataModule):
            setattr(module, name, partial(_loader, getattr(module, name), module, part, seed))
    _say_classes(module)
    _say_shape(module)
    for key in ("mean", "std"):
        _check_length(module, key)
    return module


def _check_length(module: Any, key: str) -> None:
    numbers, channels = getattr(module, key, None), module.shape[0]
    if numbers is not None and len(numbers) != channels:
        raise InputError(f"{_name(module)}.{key} has {len(numbers)} numbers for images of {channels} channels")


def _seeded_setup(setup: Callable[[str], None], seed: int, stage: str) -> None:
    """``setup``, whose random split would be another at each call."""

    def once() -> Iterator[None]:
        setup(stage)
        yield

    list(apart(once, seed, 0))


def _say_classes(module: Any) -> None:
    classes = _classes(module)
    if classes is None:  # perhaps they are known once the data is read
        _prepare(module)
        classes = _classes(module)
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        module.names, classes = named(classes), len(classes)
    if not isinstance(classes, (int, np.integer)) or isinstance(classes, bool):
        raise InputError(f"{_name(module)} must say `classes`, how many there are, and `shape`, [C, H, W]")
    names = named(getattr(module, "names", None))
    if names and len(names) != classes:
        raise InputError(f"{_name(module)} has {classes} classes and {len(names)} names")
    if getattr(module, "classes", None) != classes:
        module.classes = int(classes)


def _classes(module: Any) -> Any:
    known = (getattr(module, name, None) for name in ("classes", "num_classes", "names"))
    return next((value for value in known if value is not None), None)


def _say_shape(module: Any) -> None:
    shape = getattr(module, "shape", None)
    if shape is None:
        shape = images_of(parts_of(_first(module)).images, "the train images", log.info, ranged=False).shape[1:]
    shape = tuple(int(length) for length in shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{_name(module)}.shape must be [C, H, W], got {list(shape)}")
    if shape[0] not in CHANNELS and shape[2] in CHANNELS and shape[0] > shape[2]:
        raise InputError(f"{_name(module)}.shape must be [C, H, W], got {list(shape)}, which looks like [H, W, C]")
    if getattr(module, "shape", None) is None:
        module.shape = shape


def _prepare(module: pl.LightningDataModule) -> None:
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        module.prepare_data()
    module.setup("fit")


def _first(module: pl.LightningDataModule) -> Any:
    """The first training batch, as its loader gives it."""
    _prepare(module)
    batch = next(iter(module.train_dataloader()), None)
    if batch is None:
        raise InputError(f"{_name(module)} has no training batch")
    return batch


def _loader(make: Callable[[], Any], module: pl.LightningDataModule, part: str, seed: int) -> Any:
    """What a module's ``*_dataloader`` gives, as one loader whose passes are computed."""
    loader = make()
    if loader is None or (isinstance(loader, (list, tuple)) and not loader):
        return loader
    several = _several(loader)
    if several is not None and len(several) == 1:
        loader, several = several[0], None
    if several is not None and part == "train":
        raise InputError(f"train_dataloader gives {len(several)} loaders; give one, of a ConcatDataset for example")
    if hasattr(loader, "__next__"):
        raise InputError(f"{part}_dataloader gives an iterator, which can be read once; give what can be iterated anew")
    epoch, trainer = partial(_epoch, module), module.trainer
    if several is None and isinstance(loader, DataLoader):
        return _as_seeded(loader, seed, epoch)
    world, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
    if several is None and not isinstance(loader, (list, tuple)):
        return Passes([loader], seed, epoch)  # divides itself among processes, if at all
    if several:
        log.info("data: %s_dataloader gives %d loaders: measured as one", part, len(several))
    return Passes(several or [loader], seed, epoch, rank, world, part == "train")


def _several(loader: Any) -> list[Any] | None:
    """Several loaders; None if it is one, be it a list of batches."""
    if isinstance(loader, CombinedLoader):
        return list(loader.flattened)
    each = list(loader.values()) if isinstance(loader, Mapping) else loader
    if not isinstance(each, (list, tuple)):
        return None
    data = (Tensor, np.ndarray, list, tuple, Mapping, str)
    return list(each) if all(hasattr(one, "__iter__") and not isinstance(one, data) for one in each) else None


def _epoch(module: pl.LightningDataModule) -> int:
    """The epoch whose order is due: the first one's in all of them where the same batches are to be overfitted."""
    trainer = module.trainer
    return 0 if trainer is None or trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]


class Passes(Iterable[Any]):
    """Loaders one after another as one; ``rank`` of ``world`` processes gets every ``world``-th batch."""

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
        self.generators = {known: start for loader in loaders for known, start in _generators(loader).items()}
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
    """The loader itself, each pass of which draws from random numbers of its own.

    It stays of its class, so that Lightning can make it anew with a sampler for several processes.
    """
    kind, generators = type(loader), _generators(loader)
    if hasattr(kind, "passes_of"):
        return loader  # it was asked for before

    def passes(self: DataLoader[Any]) -> Iterator[Any]:
        return apart(partial(kind.__iter__, self), seed, epoch(), generators)

    loader.__class__ = type(
        kind.__name__, (kind,), {"__iter__": passes, "passes_of": kind, "__module__": kind.__module__}
    )
    return loader


def _generators(loader: Any) -> dict[torch.Generator, int]:
    """The generators that a loader or its sampler was given, and their seeds."""
    holders = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    return {each: each.initial_seed() for each in found if isinstance(each, torch.Generator)}


def apart(
    make: Callable[[], Iterator[Any]], seed: int, epoch: int, generators: Mapping[torch.Generator, int] = {}
) -> Iterator[Any]:
    """The items of ``make()``, drawn with global random numbers that begin at (seed, epoch) and disturb no others.

    ``generators`` begin anew as well, each at its own seed and the epoch, however often they were used before.
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


def _name(module: Any) -> str:
    return type(module).__name__
