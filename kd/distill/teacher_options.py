"""Options of a teacher besides its network: its weights, its training and its checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TeacherOptions:
    """The options of a teacher besides its network.

    ``checkpoint`` is a run folder or a weight file. Without one, the teacher is trained first, for ``epochs`` (the
    run's own ``epochs`` if None) with ``seed``, once, and reused by every later run; ``data`` contains the data options
    that differ in that training, for example ``{per_class: 0}`` for all labels, ``trainer`` those of the trainer, as
    the run's limits apply to the student only, and ``optim`` its optimiser if it is not the run's. ``train`` sets
    whether it is trained first; if None, a network with its library's weights or in eval mode is used as it is;
    ``epochs=0`` uses any network as it is. ``mean``, ``std`` and ``size`` (images are resized to it) replace the data's
    if the teacher expects others. ``classes`` selects, in the order of the data's classes, the columns of a teacher
    with more classes; ``outputs`` is its number of outputs, if the checkpoint does not determine it. ``min_accuracy``
    is the minimum validation accuracy, a share in [0, 1]; None requires a tenth of the way from chance to 1. ``cache``
    is ``auto``, ``off``, or the folder of a table of its logits. ``shuffle`` is a control: each training sample gets
    the teacher's output for another sample. ``checkpoint_key`` selects one of several sets of weights in a file, for
    example ``ema``; ``output`` selects the logits if the network returns more: a key, an attribute or a position.
    """

    checkpoint: str | None = None
    epochs: int | None = None
    seed: int = 0
    data: dict[str, Any] | None = None
    optim: dict[str, Any] | None = None
    trainer: dict[str, Any] | None = None
    train: bool | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    size: int | None = None
    classes: list[int] | None = None
    outputs: int | None = None
    min_accuracy: float | None = None
    cache: str = "auto"
    shuffle: bool = False
    checkpoint_key: str | None = None
    output: Any = None
