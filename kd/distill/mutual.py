"""Mutual learning: students that train together and are each other's teachers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.data.labels import UNKNOWN
from kd.distill.distiller import Distiller
from kd.distill.metrics import Accuracy
from kd.distill.teacher import OnlineTeacher
from kd.errors import InputError, with_key
from kd.losses.cross_entropy import class_of
from kd.registry import models, target_of


class Peers(OnlineTeacher):
    """The other students; as a teacher, their output is the mean of their probabilities.

    Args:
        peers: networks by name.

    Raises:
        InputError: ``peers`` is empty.
    """

    def __init__(self, peers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not peers:
            raise InputError("peers must name at least one network, for example teacher.peers=[resnet8]")
        self.peers = nn.ModuleDict(dict(peers))
        self.eval()  # until training begins

    def networks(self) -> dict[str, nn.Module]:
        return dict(self.peers.items())

    def tap(self, layers: Iterable[str]) -> None:
        """Raises an InputError for any layer, as the students may have different ones."""
        if names := list(layers):
            raise InputError(f"mutual learning compares outputs only, but a term uses layer {names[0]!r}")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": the mean as logits [B, C], name: a peer's logits, ...}``."""
        logits = {name: peer(batch.images) for name, peer in self.peers.items()}
        with torch.no_grad():
            shares = torch.stack([z.float().log_softmax(-1) for z in logits.values()])
            mean = shares.logsumexp(0) - math.log(len(logits))
        return {"": mean, **logits}


class MutualDistiller(Distiller):
    """Several students with one objective each, whose teacher is in turn every other student.

    total = sum over students k of the mean over j != k of objective(student k, labels, teacher j), with no gradient
    into j: with cross-entropy and KL at T = 1, this is deep mutual learning, Zhang et al. 2018 (arXiv:1706.00384).
    All students use the same batch and are updated simultaneously, whereas the paper updates them in turn. One
    optimiser has the parameters of all students; SGD and Adam update each parameter independently. Only the first
    student is validated and saved.

    Raises:
        InputError: the objective does not need a teacher, or uses layers.
    """

    teacher: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.teacher.tap(self.objective.layers("student"))
        if not self.objective.uses_teacher:
            raise InputError("mutual learning needs a term with a teacher; try objective=dml")
        names = list(self.teacher.networks())
        self.others = nn.ModuleList(copy.deepcopy(self.objective) for _ in names)
        self.right = nn.ModuleDict(
            {name: Accuracy(self.classes, average="micro", ignore_index=UNKNOWN) for name in names}
        )
        self.teacher_sha256 = None  # the checkpoint itself contains the teacher's weights

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.teacher.train()

    def tell_epoch(self) -> None:
        super().tell_epoch()
        for objective in self.others:
            objective.on_epoch(self.current_epoch)  # type: ignore[operator]

    def asks_teacher(self) -> bool:
        return True  # peers train in every epoch

    def total(self, student: Mapping[str, Tensor], batch: Batch, teacher: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over all students, and the first student's parts."""
        students = [student, *({"": teacher[name]} for name in self.teacher.networks())]
        total, first = student[""].new_zeros(()), {}
        for number, (outputs, objective) in enumerate(zip(students, [self.objective, *self.others])):
            others = [other for other in students if other is not outputs]
            answers = [objective(outputs, batch.labels, other, batch.index, self.current_epoch) for other in others]
            total = total + sum(each for each, _ in answers) / len(others)
            if number == 0:
                first = {name: sum(parts[name] for _, parts in answers) / len(others) for name in answers[0][1]}
        return total, first

    def answer(self, part: str, batch: Batch, batch_idx: int) -> Tensor | None:
        """The mean of the peers as logits; in validation, also logs each peer's accuracy."""
        logits = self.teacher(batch)
        if part == "val":
            for name, metric in self.right.items():
                metric.update(logits[name], class_of(batch.labels))  # type: ignore[operator]
                self.log(f"val/peer_{name}/acc", metric, on_step=False, on_epoch=True)  # type: ignore[arg-type]
        return logits[""]


def nodes_of(peers: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Configuration nodes by name, from a list of network names or nodes; a second one of the same name is NAME_2.

    Raises:
        InputError: an unknown name, or a node without ``_target_``.
    """
    nodes: dict[str, dict[str, Any]] = {}
    for peer in peers:
        try:
            node = dict(peer) if isinstance(peer, Mapping) else {"_target_": target_of(models[str(peer)])}
        except InputError as error:
            raise with_key("teacher.peers", error) from error
        if "_target_" not in node:
            raise InputError(f"teacher.peers must list network names or nodes with _target_, got {node}")
        name = str(node.get("name") or models.name_of(node["_target_"]) or "peer").replace(".", "_")
        alike = sum(key == name or key.startswith(f"{name}_") for key in nodes)
        nodes[f"{name}_{alike + 1}" if alike else name] = node
    return nodes
