"""What a run folder gives back: its student, data to measure it on, and its teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kd.data.adapt import Adapter
from kd.data.batch import Batch
from kd.data.datamodule import Data
from kd.data.folder import Folder, text
from kd.data.layout import NONE, WORDS, layout
from kd.data.listing import lacks_training
from kd.data.memory import Loader
from kd.distill.ensemble import Ensemble
from kd.errors import InputError, unknown
from kd.losses.cross_entropy import class_of
from kd.registry import check_registered, is_node_of, modules, parameters_of, sources
from kd.run_folder import classes
from kd.run_folder.student import load_student
from kd.run_folder.summary import names_in, read_summary, require
from kd.train import assemble

PARTS = ("test", "val", "train")
ENSEMBLE = f"{Ensemble.__module__}.{Ensemble.__qualname__}"


@dataclass(frozen=True)
class Restored:
    """``student``: images to logits; ``node`` and ``data``: what it is measured on, as it was said and as it is.

    ``columns`` [classes of the data] are the student's, where those are not the same; ``notes`` say what was decided.
    """

    folder: Path
    summary: dict[str, Any]
    student: nn.Module
    node: dict[str, Any]
    data: Any
    columns: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the classes that the student knows, or their numbers where nobody named them."""
        named = names_in(self.summary) or classes.names_of(self.data)
        return [str(name) for name in named or range(self.data.classes)]

    def batches(self, part: str) -> Iterator[Batch]:
        """As :func:`batches`, with the labels that the classes have for the student."""
        for batch in batches(self.data, part):
            yield batch if self.columns is None else batch._replace(labels=self.columns[batch.labels])

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
    student = load_student(folder, trust)
    require(summary, folder, "seed", "teacher")
    node = dict(given) if "_target_" in given else {**summary["data"]["config"], **given}
    if "_target_" not in given and not trust:
        check_registered(node, "data")
    data, decided = measurable(node, given, summary, batch_size)
    picked, matched = _classes(data, summary)
    account = data.account() if isinstance(data, Folder) else []
    return Restored(folder, summary, student, node, data, picked, (*decided, *matched, *account))


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
        node["batch_size" if "batch_size" in parameters_of(node, "data") else "eval_batch_size"] = batch_size
    data = assemble.data({"data": node, "seed": summary["seed"]})
    if data.shape[0] != own["shape"][0]:
        raise InputError(f"data has {data.shape[0]} channels, but the student of the run takes {own['shape'][0]}")
    return data


def _classes(data: Any, summary: Mapping[str, Any]) -> tuple[Tensor | None, list[str]]:
    """The student's column for each class of the data, None if they are the same, and what to say of it."""
    known, wanted, count = names_in(summary), classes.names_of(data), summary["data"]["classes"]
    if known is None or wanted is None:
        if data.classes != count:
            raise InputError(f"data has {data.classes} classes, but the student of the run knows {count}")
        side = "the run folder" if known is None else "the data"
        return None, [f"{side} names no classes, so that they are matched by their position"]
    fewer = isinstance(data, Folder)  # a folder of pictures to test on may lack some classes, a data set does not
    if data.classes > count or (data.classes < count and not fewer):
        raise InputError(f"data has {data.classes} classes, but the student of the run knows {count}")
    picked = classes.columns(known, wanted, "the student of the run")
    if picked == list(range(count)):
        return None, []
    if absent := sorted(set(known) - set(wanted), key=known.index):
        return torch.tensor(picked), [
            f"the data lacks {len(absent)} of the student's classes: {classes.listed(absent)}"
        ]
    return torch.tensor(picked), ["the data has the student's classes in another order; they are matched by name"]


def measurable(
    node: Mapping[str, Any], given: Mapping[str, Any], summary: Mapping[str, Any], batch_size: int | None
) -> tuple[Any, list[str]]:
    """The data to measure on, and what was decided: pictures in files need no training part.

    Where there are no parts at all, and it is not the run's own data, all of it is tested.
    """
    if not is_node_of(node, Folder):
        return data_of(node, summary, batch_size), []
    node, own = dict(node), summary["data"]
    if node.get("size") is None:
        node["size"] = own["shape"][-1]
    root, named = str(node["root"]), {part: text(node.get(part)) for part in WORDS}
    if node.get("train") is None and lacks_training(root, named):
        node["train"] = NONE
    data = data_of(node, summary, batch_size)
    elsewhere = os.path.realpath(root) != os.path.realpath(str(own["config"].get("root")))
    asked = "test" in given and given["test"] is not None
    if "test" not in data.shares or asked or not elsewhere or data.describe()["sha256"] == own.get("sha256"):
        return data, []
    node |= {"train": NONE, "test": str(layout(Path(root), named).parts["train"])}
    return data_of(node, summary, batch_size), [f"{root} has no test part and is not what the run saw: all is tested"]


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
