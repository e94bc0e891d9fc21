"""Prepares a custom LightningDataModule: its classes and shape, and loaders whose order is a function of the seed."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from kd.data.adapt import parts_of
from kd.data.arrays import class_names
from kd.data.images import CHANNELS, images_of
from kd.data.passes import apart, loader_of
from kd.errors import InputError

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")


def adopted(module: pl.LightningDataModule, seed: int) -> pl.LightningDataModule:
    """The same module, with ``classes`` and ``shape`` set and with loaders whose order is computed from the seed.

    ``classes`` may be called ``num_classes``, or be the list of class names; the default shape is that of the first
    training image, for which the module is prepared and set up.

    Each pass over a part is a function of (seed, epoch), whatever was drawn before, so that two runs with the same seed
    load the same batches; random numbers drawn in ``setup`` are a function of the seed.

    Raises:
        InputError: the module does not define its classes, or its attributes are inconsistent.
    """
    module.setup = partial(_seeded_setup, module, module.setup, seed, _generators(module))  # type: ignore[method-assign]
    for part in PARTS:
        name = f"{part}_dataloader"
        if is_overridden(name, module, pl.LightningDataModule):
            setattr(module, name, partial(loader_of, getattr(module, name), module, part, seed))
    _set_classes(module)
    _set_shape(module)
    for key in ("mean", "std"):
        _check_length(module, key)
    return module


def _check_length(module: Any, key: str) -> None:
    """``mean`` or ``std`` as plain numbers, one for each channel."""
    numbers, channels = getattr(module, key, None), module.shape[0]
    if isinstance(numbers, (int, float)):
        raise InputError(f"{_name(module)}.{key} must have a number for each channel: [{numbers}]")
    if numbers is not None and len(numbers) != channels:
        raise InputError(f"{_name(module)}.{key} has {len(numbers)} numbers for images of {channels} channels")
    if numbers is not None:
        setattr(module, key, [float(number) for number in numbers])


def _generators(module: pl.LightningDataModule) -> dict[str, Any]:
    """Copies of the module's random number generators, by attribute."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return {name: _copy(each) for name, each in vars(module).items() if isinstance(each, kinds)}


def _copy(generator: Any) -> Any:
    return generator.clone_state() if isinstance(generator, torch.Generator) else copy.deepcopy(generator)


def _seeded_setup(
    module: pl.LightningDataModule, setup: Callable[[str], None], seed: int, generators: dict[str, Any], stage: str
) -> None:
    """Calls ``setup`` with seeded random numbers and restored generators, so that a random split is always the same."""
    for name, generator in generators.items():
        setattr(module, name, _copy(generator))

    def single_pass() -> Iterator[None]:
        setup(stage)
        yield

    list(apart(single_pass, seed, 0))


def _set_classes(module: Any) -> None:
    classes = _classes(module)
    if classes is None:  # they may be known after setup only
        _prepare(module)
        classes = _classes(module)
    if isinstance(classes, (Sequence, Mapping, set)) and not isinstance(classes, str):
        module.names, classes = class_names(classes), len(classes)
    if not isinstance(classes, (int, np.integer)) or isinstance(classes, bool):
        raise InputError(f"{_name(module)} must define `classes`, their number or names, and `shape`, [C, H, W]")
    names = class_names(getattr(module, "names", None))
    if names and len(names) != classes:
        raise InputError(f"{_name(module)} has {classes} classes and {len(names)} names")
    if getattr(module, "classes", None) != classes:
        module.classes = int(classes)


def _classes(module: Any) -> Any:
    values = (getattr(module, name, None) for name in ("classes", "num_classes", "names"))
    return next((value for value in values if value is not None), None)


def _set_shape(module: Any) -> None:
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
    """The first training batch, as the loader yields it."""
    _prepare(module)
    batch = next(iter(module.train_dataloader()), None)
    if batch is None:
        raise InputError(f"{_name(module)} has no training batch")
    return batch


def _name(module: Any) -> str:
    return type(module).__name__
