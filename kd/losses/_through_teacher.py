"""Losses through the teacher's classifier, which is copied and frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._maps import Layers, pairs


class ThroughTeacher(nn.Module, ABC):
    """Keeps a copy of the teacher's classifier, its last linear layer, as buffers."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", None)
        self.register_buffer("bias", None)
        self.connector = nn.Sequential()

    def attach(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Reads the teacher's classifier."""
        name = type(self).__name__
        if teacher is None:
            raise InputError(f"{name} reads the teacher's classifier, and there is no single teacher network")
        linear = [module for module in teacher.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(f"{name}: {type(teacher).__name__} has no linear layer that could be its classifier")
        self.weight = linear[-1].weight.detach().clone()
        bias = linear[-1].bias
        self.bias = self.weight.new_zeros(len(self.weight)) if bias is None else bias.detach().clone()

    def classify(self, features: Tensor) -> Tensor:
        """The teacher's logits for maps with the teacher's channels."""
        return F.linear(features.mean((2, 3)), self.weight, self.bias)  # type: ignore[arg-type]

    def build(self, student: Layers, teacher: Layers) -> None:
        f_s, f_t = self.maps(student, teacher)
        if self.weight is None or self.bias is None:
            raise InputError(f"{type(self).__name__}: call attach(student, teacher) with the networks before build")
        if f_t.shape[1] != self.weight.shape[1]:
            sizes = f"the tapped layer has {f_t.shape[1]} channels, the classifier takes {self.weight.shape[1]}"
            raise InputError(f"{type(self).__name__} needs the teacher's last map before its classifier: {sizes}")
        self.connector = nn.Sequential(*self.connect(f_s.shape[1], f_t.shape[1]))
        self.to(f_t.device, f_t.dtype)

    @abstractmethod
    def connect(self, inputs: int, outputs: int) -> list[nn.Module]:
        """The layers that map the student's channels to the teacher's."""

    def maps(self, student: Layers, teacher: Layers) -> tuple[Tensor, Tensor]:
        """The one layer of each side."""
        both = pairs(type(self).__name__, student, teacher)
        if len(both) != 1:
            raise InputError(f"{type(self).__name__} compares one layer, got {len(both)}")
        return both[0]

    def check_built(self) -> None:
        """Refuses to run without a connector."""
        if not len(self.connector):
            raise InputError(f"{type(self).__name__}: call build(student, teacher) with example tensors first")
