"""Students that predict through a part of their objective: SimKD uses its projector and the teacher's classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.distill.objective import Objective, Term
from kd.distill.taps import Taps
from kd.errors import InputError
from kd.models.normalized import Normalized
from kd.models.weights import load_into, save
from kd.registry import build, split

FILE = "predictor.safetensors"


class StudentWithPredictor(nn.Module):
    """Images [B, C, H, W] to the logits that ``loss.predict`` computes from one layer of the student."""

    def __init__(self, student: Normalized, loss: nn.Module, layer: str) -> None:
        super().__init__()
        self.student, self.loss = student, loss
        self.layer, self.taps = layer, Taps(student, [layer])
        self.classes: tuple[str, ...] | None = None  # their names, if recorded in a run folder

    @property
    def net(self) -> nn.Module:
        """The bare student."""
        return self.student.net

    def forward(self, images: Tensor) -> Tensor:
        return self.loss.predict(self.taps(images)[self.layer])  # type: ignore[operator]


def describe(objective: Objective, nodes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metadata to rebuild an objective's predictor: its term, its layer, and the shapes it was built with."""
    term = objective.predictor
    if term is None:
        return None
    name = next(name for name, each in objective.named_terms() if each is term)
    loss: Any = term.loss
    classes, width = loss.weight.shape
    return {
        "term": name,
        "layer": term.sources["student"],
        "config": split(nodes[name], f"objective.{name}", Term)[0],
        "classes": classes,
        "width": width,
        "size": list(loss.size),
        "parameters": sum(p.numel() for p in loss.parameters()),
    }


def keep(term: Term, folder: Path) -> None:
    """Writes the predictor's weights into a run folder."""
    save(term.loss, folder / FILE)


def restore(
    student: Normalized, metadata: Mapping[str, Any], shape: list[int], folder: Path, trust: bool
) -> StudentWithPredictor:
    """A run folder's student together with its predictor.

    Raises:
        InputError: the predictor's weights are missing or do not fit.
    """
    loss = build(metadata["config"], f"objective.{metadata['term']}", trust=trust)
    if not hasattr(loss, "predict"):
        raise InputError(f"{folder}: {type(loss).__name__} cannot predict for a student")
    predicting = StudentWithPredictor(student, loss, metadata["layer"])
    with torch.no_grad():
        features = predicting.taps(torch.zeros(2, *shape))[metadata["layer"]].float()
        loss.attach(student.net, nn.Linear(metadata["width"], metadata["classes"]))
        loss.build(features, features.new_zeros(2, metadata["width"], *metadata["size"]))
    load_into(loss.to(student.mean.dtype), folder / FILE)
    return predicting
