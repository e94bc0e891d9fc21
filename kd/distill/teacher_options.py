"""What a configuration may say of a teacher besides its network: its weights, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TeacherOptions:
    """Where a teacher comes from, and what is asked of it.

    ``checkpoint`` is a run folder or a file of weights. Without one the teacher is trained first, for ``epochs`` (the
    run's own ``epochs`` if None) with ``seed``, once, and kept for every later run; ``data`` holds the keys of the data
    in which that training differs, ``{per_class: 0}`` say for all labels, ``trainer`` those of the trainer, whose
    limits are the student's alone, and ``optim`` its optimiser where that is not the run's. ``train`` says whether it
    is trained first; None takes a network as it is that comes with its library's weights or in eval mode; ``epochs=0``
    takes any as it is. ``mean``, ``std`` and ``size`` (images are resized to it) replace the data's where the teacher
    expects others. ``classes`` picks, in the order of the data's classes, the columns of a teacher that knows more;
    ``outputs`` says how many it knows, where its checkpoint does not show it. ``min_accuracy`` is the share of
    validation images it must get right to be a teacher; None asks for a tenth of the way from chance to perfection.
    ``cache`` is ``auto``, ``off``, or the folder of a table of its answers. ``shuffle`` is a control: each training
    sample gets another one's answer. ``checkpoint_key`` chooses among several weights in a file (``ema``, say),
    ``output`` names the logits where the network gives more: a key, an attribute or a position.
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
