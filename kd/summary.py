"""What a run's ``summary.json`` says; the schema is in docs/run-folder.md."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from torch import nn

from kd import assemble, classes, predictor, run
from kd.assemble import Config
from kd.data.folder import Folder
from kd.data.module import Data
from kd.distiller import Distiller
from kd.models.weights import Origin, prepare
from kd.monitor import Record
from kd.registry import defaults_of
from kd.teacher import fingerprints


def summarise(
    config: Config, distiller: Distiller, data: Any, record: Record, accuracy: Mapping[str, float]
) -> dict[str, Any]:
    """All of the summary that is known without timing and test; ``accuracy`` is what the gate measured."""
    shape = list(data.shape)
    student = _network(config["student"], distiller.student, shape)
    student |= {key: config["student"].get(key) for key in ("checkpoint", "head", "freeze")}
    if about := predictor.describe(distiller.objective, config["objective"]):
        student |= {"predictor": about}
    if not distiller.classifies:
        student |= {"classifier": "untrained"}
    known, best = isinstance(data, (Data, Folder)), config["callbacks"].get("best") or {}
    content = data.describe() if known else {"classes": data.classes, "shape": shape}
    names = classes.names_of(data)
    content |= {"names": list(names)} if names is not None else {}
    return {
        "task": config["task"],
        "versions": run.versions(),
        "seed": config["seed"],
        "data": {"config": config["data"], **content},
        "student": student,
        "teacher": _teacher(config, distiller, shape, accuracy),
        "objective": {"T": config["T"], "alpha": config["alpha"], "terms": distiller.objective.describe()},
        "training": {},
        "metrics": {"monitor": best.get("monitor", "val/acc"), "best": {}, "last": record.last()},
    }


def _network(node: Config, network: Any, shape: list[int]) -> dict[str, Any]:
    around = {**defaults_of(Origin), **defaults_of(prepare)}
    return {
        "name": run.name_of(node),
        "config": {key: value for key, value in node.items() if key not in around},
        "mean": [round(m, 6) for m in network.mean.flatten().tolist()],
        "std": [round(s, 6) for s in network.std.flatten().tolist()],
        "size": network.size,
        **run.size_of(network, shape),
    }


def _teacher(config: Config, distiller: Distiller, shape: list[int], accuracy: Mapping[str, float]) -> Any:
    if distiller.teacher is None:
        return None
    nodes, networks = assemble.members(config["teacher"]), distiller.teacher.networks()
    found = {name: _member(nodes[name], network, name, shape, accuracy) for name, network in networks.items()}
    if "" in found:
        return found[""]
    together = {key: sum(about[key] for about in found.values()) for key in ("parameters", "macs")}
    return {
        "name": assemble.teacher_name(config["teacher"]),
        "members": found,
        **together,
        "sha256": distiller.teacher.fingerprint(),
        "accuracy": accuracy.get(""),
    }


def _member(
    node: Config, network: nn.Module, name: str, shape: list[int], accuracy: Mapping[str, float]
) -> dict[str, Any]:
    return {
        **_network(node, network, shape),
        "classes": node.get("classes"),
        "sha256": fingerprints({"": network}),
        "checkpoint": node.get("checkpoint"),
        "accuracy": accuracy.get(name),
    }


def history(record: Record) -> str:
    """Every validation's scores as CSV."""
    columns = list(dict.fromkeys(key for scores in record.epochs for key in scores))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(record.epochs)
    return text.getvalue()
