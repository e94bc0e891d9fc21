"""Classes by name: which column of a network's logits belongs to which class of the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.data.datamodule import image_data
from kd.errors import InputError, nearest
from kd.models.normalized import unwrap
from kd.models.weights import classifier_names
from kd.run_folder.layout import STUDENT
from kd.run_folder.summary import names_in, read_summary

log = logging.getLogger(__name__)


def names_of(data: Any) -> tuple[str, ...] | None:
    """The class names of a data module; None if it has none."""
    names = image_data(data).names
    return None if names is None else tuple(str(name) for name in names)


def columns(trained: Sequence[str], wanted: Sequence[str], label: str) -> list[int]:
    """For each class of the data, the column of a network that was trained on the classes ``trained``.

    Raises:
        InputError: a class that the network was not trained on, or one name for several classes.
    """
    if tuple(trained) == tuple(wanted):
        return list(range(len(trained)))
    if missing := [name for name in wanted if name not in set(trained)]:
        near = nearest(missing[0], trained)
        hint = f"; did you mean {near!r}?" if near else ""
        raise InputError(
            f"{label} lacks {len(missing)} of the data's {len(wanted)} classes, first {missing[0]!r}{hint} "
            f"(available: {listed(trained)})"
        )
    for names in (trained, wanted):
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise InputError(f"{label} and the data cannot be matched by name: the class {twice!r} occurs twice")
    return [list(trained).index(name) for name in wanted]


def matched(node: Any, key: str, data: Any) -> Any:
    """The node of a teacher from a run folder, with the columns of the data's classes, matched by name.

    It is unchanged if its ``classes`` are set, or if either side has no class names.

    Raises:
        InputError: the data has a class that the teacher was not trained on.
    """
    wanted, checkpoint = names_of(data), node.get("checkpoint")
    trained = _classes_of(checkpoint) if wanted and checkpoint and node.get("classes") is None else None
    if trained is None or wanted is None or trained == wanted or len(trained) < len(wanted):
        return node  # a classifier of fewer classes does not fit, which is an error when it is loaded
    selected = columns(trained, wanted, f"{key}: the teacher in {checkpoint}")
    order = "in another order" if len(trained) == len(wanted) else f"{len(wanted)} of {len(trained)}"
    log.info("%s: the data's classes are %s there; matched by name: %s", checkpoint, order, _pairs(wanted, selected))
    return {**node, "classes": selected, "outputs": len(trained)}


@torch.no_grad()
def realign(student: nn.Module, node: Mapping[str, Any], data: Any) -> None:
    """Reorders the classifier of a student that starts from a run to the data's classes, by name.

    It is unchanged if the classifier is new, or if either side has no class names. With other classes it is unchanged
    as well, with a warning.
    """
    wanted, checkpoint = names_of(data), node.get("checkpoint")
    trained = _classes_of(checkpoint) if wanted and checkpoint and node.get("head") is None else None
    if trained is None or wanted is None or trained == wanted:
        return
    if set(trained) != set(wanted):
        message = (
            "student.checkpoint=%s: its classifier was trained on other classes (%s); student.head=new replaces it"
        )
        log.warning(message, checkpoint, listed(trained))
        return
    selected = torch.tensor(columns(trained, wanted, f"student: the one in {checkpoint}"))
    net = unwrap(student)
    for name in classifier_names(net):
        for rows in net.get_submodule(name).parameters():
            rows.copy_(rows[selected])
    message = "student.checkpoint=%s: the data's classes are in another order there; matched by name: %s"
    log.info(message, checkpoint, _pairs(wanted, selected.tolist()))


def listed(names: Sequence[str], limit: int = 8) -> str:
    """The first names and, if there are more, how many in all."""
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _classes_of(checkpoint: str) -> tuple[str, ...] | None:
    """The class names of the run whose folder ``checkpoint`` is, or lies in."""
    path = Path(checkpoint)
    folder = path.parent if path.name == STUDENT else path.parent.parent if path.suffix == ".ckpt" else path
    try:
        return names_in(read_summary(path if path.is_dir() else folder))
    except InputError:
        return None


def _pairs(wanted: Sequence[str], selected: Sequence[int], limit: int = 4) -> str:
    more = ", ..." if len(wanted) > limit else ""
    return ", ".join(f"{name} is column {column}" for name, column in zip(wanted[:limit], selected)) + more
