"""Loads a run folder's student and the data to evaluate it on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from kd.data.adapt import Adapter
from kd.data.batch import Batch
from kd.data.datamodule import ImageData, image_data
from kd.data.decode import Reading
from kd.data.folder import Folder, text
from kd.data.layout import NONE, layout
from kd.data.listing import lacks_training
from kd.data.memory import Loader
from kd.data.tables import WORDS
from kd.errors import InputError, unknown
from kd.losses.cross_entropy import class_of
from kd.registry import check_registered, is_node_of, modules, parameters_of, sources
from kd.run_folder import classes
from kd.run_folder.load import reading_of
from kd.run_folder.student import load_student
from kd.run_folder.summary import names_in, read_summary, require
from kd.train import assemble

PARTS = ("test", "val", "train")


@dataclass(frozen=True)
class LoadedRun:
    """A run's student (images to logits) with the data that it is evaluated on, as configuration ``node`` and built.

    ``columns`` maps each class of the data to the student's column if they differ; ``notes`` are messages for the user.
    """

    folder: Path
    summary: dict[str, Any]
    student: nn.Module
    node: dict[str, Any]
    data: ImageData
    columns: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the student's classes, or their numbers if there are no names."""
        named = names_in(self.summary) or classes.names_of(self.data)
        return [str(name) for name in named or range(self.data.classes)]

    def batches(self, part: str) -> Iterator[Batch]:
        """As :func:`batches`, with labels numbered as the student's classes."""
        for batch in batches(self.data, part):
            yield batch if self.columns is None else batch._replace(labels=self.columns[batch.labels])

    @property
    def data_name(self) -> str:
        """The name of the data; see :func:`data_name`."""
        return data_name(self.node)


def load_run(run: str, data_node: Mapping[str, Any], batch_size: int | None, trust: bool) -> LoadedRun:
    """Loads the student of a run folder, and the data to evaluate it on.

    Args:
        run: the run folder. It is data: code that it names is run only if it is registered with kd.
        data_node: a data node; without a ``_target_``, keys of the run's own data to change.
        batch_size: images per batch; None for the data's default.
        trust: whether to import classes that the run folder names and that are not registered with kd.

    Raises:
        InputError: no finished run, classes that are neither registered nor trusted, or incompatible data.
    """
    folder = Path(run)
    summary = read_summary(folder)
    student = load_student(folder, trust)
    require(summary, folder, "seed", "teacher")
    is_complete = "_target_" in data_node
    node = dict(data_node) if is_complete else {**summary["data"]["config"], **data_node}
    if not is_complete and not trust:
        check_registered(node, "data")
    data, notes = evaluation_data(node, data_node, summary, batch_size)
    columns, class_notes = _columns(data, summary)
    notes += [*class_notes, *_decoding(data, summary), *data.account()]
    return LoadedRun(folder, summary, student, node, data, columns, tuple(notes))


def _decoding(data: ImageData, summary: Mapping[str, Any]) -> list[str]:
    """Warnings about image files that are decoded with other options than in the run."""
    if not isinstance(data, Folder) or modules.name_of(str(summary["data"]["config"].get("_target_"))) is None:
        return []
    pairs = zip(Reading._fields, data.reading, reading_of(summary["data"]))
    return [
        f"WARNING: data.{key}={value}, but the run had data.{key}={before}"
        for key, value, before in pairs
        if value != before
    ]


def data_name(node: Mapping[str, Any]) -> str:
    """The registered name of a data node, else the last part of its dotted path."""
    target = str(node["_target_"])
    return sources.name_of(target) or modules.name_of(target) or target.rpartition(".")[2]


def data_of(node: Mapping[str, Any], summary: Mapping[str, Any], batch_size: int | None) -> ImageData:
    """The data module of a node, whose channels must be those of the run."""
    channels, node = summary["data"]["shape"][0], dict(node)
    if batch_size is not None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        node["batch_size" if "batch_size" in parameters_of(node, "data") else "eval_batch_size"] = batch_size
    data = assemble.data({"data": node, "seed": summary["seed"]})
    if data.shape[0] != channels:
        raise InputError(f"data has {data.shape[0]} channels, but the run's student expects {channels}")
    return data


def _columns(data: ImageData, summary: Mapping[str, Any]) -> tuple[Tensor | None, list[str]]:
    """The student's column for each class of the data, None if they are equal, and messages for the user."""
    names, data_names, count = names_in(summary), classes.names_of(data), summary["data"]["classes"]
    may_lack = data.subset_of_classes and names is not None and data_names is not None  # else a whole dataset
    if data.classes > count or (data.classes < count and not may_lack):
        raise InputError(f"data has {data.classes} classes, but the run's student has {count}")
    if names is None or data_names is None:
        side = "the run folder" if names is None else "the data"
        return None, [f"{side} has no class names, so classes are matched by position"]
    columns = classes.columns(names, data_names, "the student of the run")
    if columns == list(range(count)):
        return None, []
    if absent := sorted(set(names) - set(data_names), key=names.index):
        return torch.tensor(columns), [
            f"the data lacks {len(absent)} of the student's classes: {classes.listed(absent)}"
        ]
    return torch.tensor(columns), ["the data has the student's classes in another order; they are matched by name"]


def evaluation_data(
    node: Mapping[str, Any], data_node: Mapping[str, Any], summary: Mapping[str, Any], batch_size: int | None
) -> tuple[ImageData, list[str]]:
    """The data to evaluate on, and messages for the user. Image files need no training part.

    Image files without any parts are evaluated as a whole, unless they are the run's own data.
    """
    if not is_node_of(node, Folder):
        return data_of(node, summary, batch_size), []
    node, trained_on = dict(node), summary["data"]
    if node.get("size") is None:
        node["size"] = trained_on["shape"][-1]
    root, parts = str(node["root"]), {part: text(node.get(part)) for part in WORDS}
    if node.get("train") is None and lacks_training(root, parts):
        node["train"] = NONE
    data = data_of(node, summary, batch_size)
    assert isinstance(data, Folder)
    if "test" not in data.shares or data_node.get("test") is not None:
        return data, []
    is_same_folder = os.path.realpath(root) == os.path.realpath(str(trained_on["config"].get("root")))
    if is_same_folder or data.describe()["sha256"] == trained_on.get("sha256"):
        return data, []
    node |= {"train": NONE, "test": str(layout(Path(root), parts).parts["train"].absolute())}
    note = f"{root} has no test part and is not the run's own data: all images are evaluated"
    return data_of(node, summary, batch_size), [note]


def batches(data: Any, part: str) -> Iterator[Batch]:
    """All batches of ``test``, ``val`` or ``train``, in order and without augmentation.

    Raises:
        InputError: an unknown part, images without labels, or the training part of data that is not in memory.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    data = image_data(data)
    if data.memory is not None:
        images, labels = data.memory.parts[part]
        unknown_labels = int((labels < 0).sum())
        if unknown_labels:
            count = len(labels)
            raise InputError(
                f"part={part}: {unknown_labels} of {count} images have no label; set part=val or part=test, or "
                "data.unlabelled=false for the labelled images alone"
            )
        yield from Loader(images, labels, data.memory.eval_batch_size, train=False)
        return
    if part == "train":
        raise InputError("part=train requires data in memory; for a data module, set part=val or part=test")
    if data.trainer is None:  # which hooks of a custom module may use
        data.trainer = pl.Trainer(devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    if not is_overridden(f"{part}_dataloader", data.lightning):
        raise InputError(
            f"part={part}: the data has no such part, as {type(data.lightning).__name__} has no {part}_dataloader"
        )
    data.prepare_data()
    data.setup("test" if part == "test" else "fit")
    adapt = Adapter(data.classes, data.shape, data.names)
    for raw in data.test_dataloader() if part == "test" else data.val_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        checked = isinstance(batch, Batch) and data.checked
        yield batch if checked else _with_classes(adapt(batch, part), part)


def _with_classes(batch: Batch, part: str) -> Batch:
    """The batch with its labels as classes."""
    labels = class_of(batch.labels)
    if (labels < 0).any():
        raise InputError(f"part={part}: some images have no label")
    return batch._replace(labels=labels)
