"""The content of a run's ``summary.json``; docs/run-folder.md has the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kd.callbacks.history import History
from kd.data.datamodule import ImageData
from kd.distill.distiller import Distiller
from kd.distill.spec import TeacherSpec
from kd.distill.teacher import fingerprints
from kd.distill.teacher_options import TeacherOptions
from kd.models.cost import size_of
from kd.models.names import name_of
from kd.models.weights import prepare
from kd.registry import split
from kd.run_folder import classes, predictor
from kd.run_folder.layout import versions
from kd.train.assemble import Config


def summarise(
    config: Config, distiller: Distiller, data: ImageData, record: History, accuracy: Mapping[str, float]
) -> dict[str, Any]:
    """The summary without timing and test scores.

    ``accuracy`` has the teacher's validation accuracies as measured by the gate.
    """
    shape = list(data.shape)
    student = _network(config["student"], distiller.student, shape, prepare)
    options = split(config["student"], "student", prepare)[1]
    student |= {key: options.get(key) for key in ("checkpoint", "head", "freeze")}
    if described := predictor.describe(distiller.objective, config["objective"]):
        student |= {"predictor": described}
    if not distiller.classifies:
        student |= {"classifier": "untrained"}
    content = data.describe() if data.parts else {"classes": data.classes, "shape": shape}
    names = classes.names_of(data)
    content |= {"names": list(names)} if names is not None else {}
    return {
        "task": config["task"],
        "versions": versions(),
        "seed": config["seed"],
        "data": {"config": config["data"], **content},
        "student": student,
        "teacher": _teacher(config, distiller, shape, accuracy),
        "objective": {"T": config["T"], "alpha": config["alpha"], "terms": distiller.objective.describe()},
        "training": {},
        "metrics": {"monitor": None, "best": {}, "last": record.last()},
    }


def _network(node: Config, network: Any, shape: list[int], *wrappers: Any) -> dict[str, Any]:
    return {
        "name": name_of(node),
        "config": split(node, name_of(node), *wrappers)[0],
        "mean": [round(m, 6) for m in network.mean.flatten().tolist()],
        "std": [round(s, 6) for s in network.std.flatten().tolist()],
        "size": network.size,
        "output": network.output,
        **size_of(network, shape),
    }


def _teacher(config: Config, distiller: Distiller, shape: list[int], accuracy: Mapping[str, float]) -> Any:
    if distiller.teacher is None:
        return None
    spec = TeacherSpec.parse(config["teacher"])
    nodes, networks = spec.nodes(), distiller.teacher.networks()
    wrappers = (prepare,) if spec.online else (prepare, TeacherOptions)
    digests = distiller.members_sha256
    sha256 = {name: digests.get(name) or fingerprints({"": network}) for name, network in networks.items()}
    members = {
        name: {**_member(nodes[name], network, name, shape, accuracy, wrappers), "sha256": sha256[name]}
        for name, network in networks.items()
    }
    if "" in members:
        return members[""]
    together = {key: sum(member[key] for member in members.values()) for key in ("parameters", "macs")}
    return {
        "name": spec.display_name,
        "members": members,
        **together,
        "sha256": distiller.teacher_sha256 or distiller.teacher.fingerprint(),
        "accuracy": accuracy.get(""),
    }


def _member(
    node: Config,
    network: nn.Module,
    name: str,
    shape: list[int],
    accuracy: Mapping[str, float],
    wrappers: tuple[Any, ...],
) -> dict[str, Any]:
    options = split(node, name_of(node), *wrappers)[1]
    return {
        **_network(node, network, shape, *wrappers),
        "classes": options.get("classes"),
        "checkpoint": options.get("checkpoint"),
        "accuracy": accuracy.get(name),
    }


def limits_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of a run's length: those of ``max_epochs``, ``max_steps`` and ``max_time`` that are set."""
    keys = ("max_epochs", "max_steps", "max_time")
    return {key: config["trainer"][key] for key in keys if config["trainer"].get(key) is not None}
