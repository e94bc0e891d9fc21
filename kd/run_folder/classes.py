"""Classes by their names: which column of a network's answers stands for which class of the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.errors import InputError, nearest
from kd.models.normalized import unwrap
from kd.models.weights import classifier_names
from kd.run_folder.layout import STUDENT
from kd.run_folder.summary import names_in, read_summary

log = logging.getLogger(__name__)


def names_of(data: Any) -> tuple[str, ...] | None:
    """The names of a data module's classes; None if it names none."""
    names = getattr(data, "names", None)
    return None if names is None else tuple(str(name) for name in names)


def columns(known: Sequence[str], wanted: Sequence[str], who: str) -> list[int]:
    """For each class that the data has, the column of a network that knows the classes ``known``.

    Raises:
        InputError: a class that the network does not know, or one name for several classes.
    """
    if tuple(known) == tuple(wanted):
        return list(range(len(known)))
    if strange := [name for name in wanted if name not in set(known)]:
        near = nearest(strange[0], known)
        hint = f"; is it {near!r} there?" if near else ""
        raise InputError(
            f"{who} does not know {len(strange)} of the data's {len(wanted)} classes, first {strange[0]!r}{hint} "
            f"(it knows: {shown(known)})"
        )
    for names in (known, wanted):
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise InputError(f"{who} and the data cannot be matched by name: the class {twice!r} is there twice")
    return [list(known).index(name) for name in wanted]


def matched(node: Any, at: str, data: Any) -> Any:
    """The node of a teacher that comes from a run folder, with the columns of the data's classes, matched by name.

    It stays as it is where its ``classes`` are given, or either side names no classes.

    Raises:
        InputError: the data has a class that the teacher does not know.
    """
    wanted, checkpoint = names_of(data), node.get("checkpoint")
    known = _known_to(checkpoint) if wanted and checkpoint and node.get("classes") is None else None
    if known is None or wanted is None or known == wanted or len(known) < len(wanted):
        return node  # a classifier of fewer classes does not fit, which is said when it is loaded
    picked = columns(known, wanted, f"{at}: the teacher in {checkpoint}")
    order = "in another order" if len(known) == len(wanted) else f"{len(wanted)} of {len(known)}"
    log.info("%s: the data's classes are %s there; matched by name: %s", checkpoint, order, _pairs(wanted, picked))
    return {**node, "classes": picked, "outputs": len(known)}


@torch.no_grad()
def realign(student: nn.Module, node: Mapping[str, Any], data: Any) -> None:
    """Brings the classifier of a student that starts from a run into the order of the data's classes, by name.

    It stays as it is where it is a new one, or either side names no classes. Of other classes, which is a warning, it
    keeps the order.
    """
    wanted, checkpoint = names_of(data), node.get("checkpoint")
    known = _known_to(checkpoint) if wanted and checkpoint and node.get("head") is None else None
    if known is None or wanted is None or known == wanted:
        return
    if set(known) != set(wanted):
        text = (
            "student.checkpoint=%s: its classifier was trained on other classes (%s); student.head=new makes a new one"
        )
        log.warning(text, checkpoint, shown(known))
        return
    picked = torch.tensor(columns(known, wanted, f"student: the one in {checkpoint}"))
    net = unwrap(student)
    for name in classifier_names(net):
        for rows in net.get_submodule(name).parameters():
            rows.copy_(rows[picked])
    told = "student.checkpoint=%s: the data's classes are in another order there; matched by name: %s"
    log.info(told, checkpoint, _pairs(wanted, picked.tolist()))


def shown(names: Sequence[str], most: int = 8) -> str:
    """The first of the names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _known_to(checkpoint: str) -> tuple[str, ...] | None:
    """The classes of the run that a checkpoint is, or lies in."""
    path = Path(checkpoint)
    within = path.parent if path.name == STUDENT else path.parent.parent if path.suffix == ".ckpt" else path
    try:
        return names_in(read_summary(path if path.is_dir() else within))
    except InputError:
        return None


def _pairs(wanted: Sequence[str], picked: Sequence[int], most: int = 4) -> str:
    more = ", ..." if len(wanted) > most else ""
    return ", ".join(f"{name} is column {column}" for name, column in zip(wanted[:most], picked)) + more
