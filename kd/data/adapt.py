"""Converts whatever a custom loader yields to a :class:`Batch`; no other file depends on its structure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd.data.batch import Batch
from kd.data.images import images_of
from kd.data.labels import UNKNOWN, labels_of
from kd.data.tensors import kind
from kd.errors import InputError

log = logging.getLogger(__name__)

IMAGES = ("images", "image", "pixel_values", "img", "imgs", "inputs", "input", "x")
LABELS = ("labels", "label", "targets", "target", "class", "y")
INDEX = ("index", "idx")


class Parts(NamedTuple):
    """The parts of a batch as the loader yielded them; None for absent ones."""

    images: Any
    labels: Any = None
    index: Any = None
    view: Any = None


class Adapter:
    """Converts what a loader yields to batches of pixels [B, C, H, W] and labels.

    A batch is ``(images, labels, ...)``, or a mapping or named tuple with one of the usual names for each, or a list
    of samples. A third integer tensor [B] is the position in the training set; other entries are ignored. See
    :func:`~kd.data.images.images_of` and :func:`~kd.data.labels.labels_of` for the conversions.

    Args:
        classes: number of classes.
        shape: [C, H, W] of the images.
        names: the class names, for labels that are names.

    Attributes:
        unlabelled: whether some training label was -1 (unknown).
        mixed: whether training labels were probabilities.
        without_labels: whether training batches had no labels at all.

    Raises:
        InputError: an ambiguous batch; the message names what it is and what is accepted.
    """

    def __init__(self, classes: int, shape: Sequence[int], names: Sequence[str] | None = None) -> None:
        self.classes, self.shape, self.names = classes, list(shape), [str(name) for name in names or ()]
        self.unlabelled = self.mixed = self.without_labels = False
        self._looked_at: set[str] = set()
        self._noted: set[str] = set()

    def __call__(self, raw: Any, part: str = "train", device: torch.device | None = None) -> Batch:
        """The batch of ``part``: ``train``, ``val`` or ``test``."""
        parts = parts_of(raw)
        first, train = part not in self._looked_at, part == "train"
        self._looked_at.add(part)
        # only the first training batch, as each check makes a GPU wait; non-finite values show in the loss
        look = {"ranged": first or not train, "finite": not train}
        images = images_of(parts.images, f"the {part} images", self._note, self.shape, **look)
        if first and list(images.shape[1:]) != self.shape:
            self._other_size(list(images.shape[1:]), part)
        labels = self._labels(parts.labels, len(images), part)
        index = parts.index if train and _positions(parts.index, len(images)) else None
        if first and index is not None and (count := len(index.unique())) < len(index):
            log.warning(
                "data: the third entry of a train batch is read as positions in the training set, but %d images have "
                "%d distinct values: remove it if it is something else, as losses with a memory would be wrong",
                len(index),
                count,
            )
        if parts.index is not None and index is None and train:
            self._note(f"the {part} batches have a third entry, {kind(parts.index)}, which is ignored")
        view = parts.view if isinstance(raw, Batch) else None
        return Batch(images, labels, index, view).each(lambda each: each.to(device or images.device))

    def _labels(self, raw: Any, count: int, part: str) -> Tensor:
        if raw is None:
            self._note(f"the {part} batches have no labels: treated as unknown (-1)")
            self.without_labels |= part == "train"
            labels = torch.full((count,), UNKNOWN)
        else:
            labels = labels_of(raw, self.classes, f"the {part} labels", self._note, self.names)
        if len(labels) != count:
            raise InputError(f"a batch of the {part} part has {count} images and {len(labels)} labels")
        if part == "train":
            self.mixed |= labels.ndim == 2
            self.unlabelled |= bool((labels < 0).any() if labels.ndim == 1 else (labels.sum(1) == 0).any())
        return labels

    def _other_size(self, shape: list[int], part: str) -> None:
        message = f"the {part} images are {shape}, but the declared shape [C, H, W] is {self.shape}"
        if part == "train":
            raise InputError(f"{message}; set shape={shape}")
        log.warning("data: %s", message)

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            log.info("data: %s", text)


def parts_of(raw: Any) -> Parts:
    """The parts of a batch of any structure.

    Raises:
        InputError: a structure in which images and labels cannot be distinguished.
    """
    if isinstance(raw, Batch):
        return Parts(*raw)
    if isinstance(raw, Mapping):
        return _by_name(raw)
    if isinstance(raw, tuple) and hasattr(raw, "_asdict"):
        fields = raw._asdict()
        return _by_name(fields) if any(name in fields for name in IMAGES) else Parts(*tuple(raw)[:3])
    if isinstance(raw, (list, tuple)) and raw:
        if all(map(_is_sample, raw)):
            samples = [parts_of(sample) for sample in raw]
            columns = [list(column) for column in zip(*samples)]
            return Parts(*(None if any(each is None for each in column) else column for column in columns[:2]))
        return Parts(*raw[:3])
    if isinstance(raw, (Tensor, np.ndarray)):
        return Parts(raw)
    raise InputError(f"a batch must be (images, labels) or a dict of them, got {kind(raw)}")


def images_in(raw: Any) -> int:
    """Number of images in a batch of any structure."""
    return len(parts_of(raw).images)


def _by_name(raw: Mapping[str, Any]) -> Parts:
    parts = {}
    for key, names in (("images", IMAGES), ("labels", LABELS), ("index", INDEX)):
        present = [name for name in names if name in raw]
        if len(present) > 1:
            raise InputError(f"a batch has several {key}: {', '.join(present)}; keep one of them")
        parts[key] = raw[present[0]] if present else None
    if parts["images"] is None:
        keys = ", ".join(map(str, raw)) or "nothing"
        raise InputError(f"a batch has no images: its keys are {keys}; accepted: {', '.join(IMAGES)}")
    return Parts(**parts)


def _is_sample(raw: Any) -> bool:
    """Whether an element of a list is an (image, label) pair, so that the list was not collated."""
    if isinstance(raw, Mapping):
        return True
    if not isinstance(raw, (list, tuple)) or isinstance(raw, Batch) or len(raw) < 2:
        return False
    return _is_image(raw[0]) and not _is_image(raw[1])


def _is_image(raw: Any) -> bool:
    return isinstance(raw, Image.Image) or (isinstance(raw, (Tensor, np.ndarray)) and raw.ndim >= 2)


def _positions(index: Any, count: int) -> bool:
    whole = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
    return whole and index.shape == (count,)
