"""What a run folder gives back: its student, data to measure it on, and its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

import kd.data.folder  # noqa: F401 (registers it)
from kd import assemble
from kd.data.adapt import Adapter
from kd.data.batch import Batch
from kd.data.memory import Loader
from kd.data.module import Data
from kd.errors import InputError, unknown
from kd.losses.hard import class_of
from kd.registry import check_registered, modules, named_by, sources
from kd.run import load, read_summary, require
from kd.teacher import Ensemble

PARTS = ("test", "val", "train")
ENSEMBLE = f"{Ensemble.__module__}.{Ensemble.__qualname__}"


@dataclass(frozen=True)
class Restored:
    """``student``: images to logits; ``node`` and ``data``: what it is measured on, as it was said and as it is."""

    folder: Path
    summary: dict[str, Any]
    student: nn.Module
    node: dict[str, Any]
    data: Any

    @property
    def names(self) -> list[str]:
        """The classes' names, or their numbers where nobody named them."""
        return [str(name) for name in getattr(self.data, "names", range(self.data.classes))]

    @property
    def data_name(self) -> str:
        """What the data is called."""
        return data_name(self.node)


def restore(run: str, given: Mapping[str, Any], batch_size: int | None, trust: bool) -> Restored:
    """The student of a run folder, and data to measure it on.

    Args:
        run: the run folder. It is data: nothing that it names is run unless it is registered with kd.
        given: a data node that the user typed; without a ``_target_`` its keys change the run's own data.
        batch_size: images at a time, where the user says so.
        trust: whether classes may be imported that the run folder names and kd does not know.

    Raises:
        InputError: no finished run, classes that are not registered and not trusted, or data that does not fit.
    """
    folder = Path(run)
    summary = read_summary(folder)
    student = load(folder, trust)
    require(summary, folder, "seed", "teacher")
    node = dict(given) if "_target_" in given else {**summary["data"]["config"], **given}
    if "_target_" not in given and not trust:
        check_registered(node, "data")
    return Restored(folder, summary, student, node, data_of(node, summary, batch_size))


def data_name(node: Mapping[str, Any]) -> str:
    """What a data node is called: its registered name, else the last word of its dotted path."""
    target = str(node["_target_"])
    return sources.name_of(target) or modules.name_of(target) or target.rpartition(".")[2]


def data_of(node: Mapping[str, Any], summary: Mapping[str, Any], batch_size: int | None) -> Any:
    """The data module of a node, checked against the run's classes and channels."""
    own, node = summary["data"], dict(node)
    if batch_size is not None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        node["batch_size" if "batch_size" in named_by(node, "data") else "eval_batch_size"] = batch_size
    data = assemble.data({"data": node, "seed": summary["seed"]})
    if data.classes != own["classes"]:
        raise InputError(f"data has {data.classes} classes, but the student of the run knows {own['classes']}")
    if data.shape[0] != own["shape"][0]:
        raise InputError(f"data has {data.shape[0]} channels, but the student of the run takes {own['shape'][0]}")
    return data


def batches(data: Any, part: str) -> Iterator[Batch]:
    """All images of ``test``, ``val`` or ``train``, in order and without augmentation.

    Raises:
        InputError: an unknown part, images without labels, or the training part of data that is not in memory.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    if isinstance(data, Data):
        unknown_labels = int((data.memory.parts[part][1] < 0).sum())
        if unknown_labels:
            count = len(data.memory.parts[part][1])
            raise InputError(
                f"part={part}: {unknown_labels} of {count} images have no label to be measured by; "
                "take part=val or part=test, or data.unlabelled=false for the labelled ones alone"
            )
        yield from Loader(*data.memory.parts[part], data.memory.eval_batch_size, train=False)
        return
    if part == "train":
        raise InputError("part=train needs data in memory; of a data module there are part=val and part=test")
    if data.trainer is None:  # the hooks of a module of one's own may ask it
        data.trainer = pl.Trainer(devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.prepare_data()
    data.setup("test" if part == "test" else "fit")
    adapt = Adapter(data.classes, data.shape, getattr(data, "names", None))
    for raw in data.test_dataloader() if part == "test" else data.val_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        checked = isinstance(batch, Batch) and getattr(data, "checked", False)
        yield batch if checked else _measurable(adapt(batch, part), part)


def _measurable(batch: Batch, part: str) -> Batch:
    labels = class_of(batch.labels)
    if (labels < 0).any():
        raise InputError(f"part={part}: some images have no label to be measured by")
    return batch._replace(labels=labels)
