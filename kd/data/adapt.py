"""From whatever a loader of one's own yields to a :class:`Batch`: the one place where its structure is known."""

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
    """What a batch is made of, as its loader gave it; None for what it does not have."""

    images: Any
    labels: Any = None
    index: Any = None
    view: Any = None


class Adapter:
    """Makes batches [B, C, H, W] of pixels with their labels out of what a loader yields.

    A batch is ``(images, labels, ...)``, or a mapping or named tuple with one of the usual names for each, or a list
    of samples. A third tensor of whole numbers [B] is the position in the training set; whatever else comes along is
    left out. See :func:`~kd.data.images.images_of` and :func:`~kd.data.labels.labels_of` for what is taken as what.

    Args:
        classes: how many there are.
        shape: [C, H, W] of the images.
        names: the classes' names, for labels that are names.

    Attributes:
        unlabelled: whether some training label was -1, not known.
        mixed: whether training labels came as probabilities.
        without_labels: whether training batches had no labels at all.

    Raises:
        InputError: a batch that is not clear; what it is and what would be are named.
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
        # of training only the first batch, as a GPU would wait each time; what is not finite shows in the loss
        look = {"ranged": first or not train, "finite": not train}
        images = images_of(parts.images, f"the {part} images", self._note, self.shape, **look)
        if first and list(images.shape[1:]) != self.shape:
            self._other_size(list(images.shape[1:]), part)
        labels = self._labels(parts.labels, len(images), part)
        index = parts.index if train and _positions(parts.index, len(images)) else None
        if first and index is not None and (count := len(index.unique())) < len(index):
            log.warning(
                "data: the third of a train batch is taken as positions in the training set, but of %d images it holds "
                "%d numbers: if it is something else, leave it out, as losses that keep what they saw would be wrong",
                len(index),
                count,
            )
        if parts.index is not None and index is None and train:
            self._note(f"the {part} batches have more than images and labels: {kind(parts.index)}, not used")
        view = parts.view if isinstance(raw, Batch) else None
        return Batch(images, labels, index, view).each(lambda each: each.to(device or images.device))

    def _labels(self, given: Any, count: int, part: str) -> Tensor:
        if given is None:
            self._note(f"the {part} batches have no labels: taken as not known")
            self.without_labels |= part == "train"
            labels = torch.full((count,), UNKNOWN)
        else:
            labels = labels_of(given, self.classes, f"the {part} labels", self._note, self.names)
        if len(labels) != count:
            raise InputError(f"a batch of the {part} part has {count} images and {len(labels)} labels")
        if part == "train":
            self.mixed |= labels.ndim == 2
            self.unlabelled |= bool((labels < 0).any() if labels.ndim == 1 else (labels.sum(1) == 0).any())
        return labels

    def _other_size(self, shape: list[int], part: str) -> None:
        said = f"the {part} images are {shape}, but their shape [C, H, W] was said to be {self.shape}"
        if part == "train":
            raise InputError(f"{said}; set shape={shape}")
        log.warning("data: %s", said)

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            log.info("data: %s", text)


def parts_of(raw: Any) -> Parts:
    """The parts of a batch of any structure.

    Raises:
        InputError: a structure in which images cannot be told from labels.
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
    """How many images a batch of any structure has."""
    return len(parts_of(raw).images)


def _by_name(raw: Mapping[str, Any]) -> Parts:
    found = {}
    for what, names in (("images", IMAGES), ("labels", LABELS), ("index", INDEX)):
        present = [name for name in names if name in raw]
        if len(present) > 1:
            raise InputError(f"a batch has several {what}: {', '.join(present)}; leave one of them")
        found[what] = raw[present[0]] if present else None
    if found["images"] is None:
        there = ", ".join(map(str, raw)) or "nothing"
        raise InputError(f"a batch has no images: its keys are {there}; known are {', '.join(IMAGES)}")
    return Parts(**found)


def _is_sample(raw: Any) -> bool:
    """Whether one of a list is an (image, label) itself, so that the list was not collated."""
    if isinstance(raw, Mapping):
        return True
    if not isinstance(raw, (list, tuple)) or isinstance(raw, Batch) or len(raw) < 2:
        return False
    return _is_image(raw[0]) and not _is_image(raw[1])


def _is_image(raw: Any) -> bool:
    return isinstance(raw, Image.Image) or (isinstance(raw, (Tensor, np.ndarray)) and raw.ndim >= 2)


def _positions(given: Any, count: int) -> bool:
    whole = isinstance(given, Tensor) and not given.is_floating_point() and given.dtype != torch.bool
    return whole and given.shape == (count,)
