"""A batch, and the arrays that a data source returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """The samples of one step.

    ``images`` [B, C, H, W] as uint8 or float in [0, 1], never normalised in transit; ``labels`` [B] class
    numbers, -1 where unknown, or [B, C] probabilities, zero where unknown; ``index`` [B] the position in the
    training set; ``view`` [B] the augmentation of each image, where views can be enumerated: the pixels are then a
    function of (index, view). Before augmentation, ``view`` is the occurrence number of a sample, where samples repeat.
    """

    images: Tensor
    labels: Tensor
    index: Tensor | None = None  # type: ignore[assignment]
    view: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Applies ``function`` to each tensor of the batch."""
        return Batch(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Arrays:
    """An image data set in memory: uint8 images [N, C, H, W] and int64 labels [N], for training and for test.

    Other unambiguous forms are converted; see :func:`kd.data.arrays.adapted`. A training label is -1 if unknown.
    ``names`` are the class names, by default the distinct labels or numbers; ``mean`` and ``std``, per channel on the
    [0, 1] scale, are by default computed from the training images.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
