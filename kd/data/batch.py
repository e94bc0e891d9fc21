"""What data is made of: the batch that travels, and the arrays that a source answers with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One step's worth of samples.

    ``images`` [B, C, H, W] as uint8 or float in [0, 1], never normalised in transit; ``labels`` [B] class
    numbers, -1 where not known, or [B, C] probabilities, zero where not known; ``index`` [B] the position in the
    training set; ``view`` [B] which augmentation each image got, where augmentations are counted: the pixels are then
    a function of (index, view). Until it is augmented, ``view`` is which time a sample comes, where samples repeat.
    """

    images: Tensor
    labels: Tensor
    index: Tensor | None = None  # type: ignore[assignment]
    view: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch of what ``function`` makes of each of its tensors."""
        return Batch(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Arrays:
    """An image data set in memory: uint8 images [N, C, H, W] and int64 labels [N], for training and for test.

    What is as clear is taken too; see :func:`kd.data.arrays.adapted`. A training label is -1 where it is not known.
    ``names`` are the classes, the labels' own words or numbers where absent; ``mean`` and ``std`` per channel on the
    [0, 1] scale, computed from the training images where absent.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
