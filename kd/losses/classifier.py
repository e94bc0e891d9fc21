"""Losses that look at features through a classifier: the teacher's own, or each network's by position."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses.maps import Layers, conv_bn, pairs, pool, same_size
from kd.losses.reduce import check
from kd.registry import losses


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
        """The layers that bring the student's map to the teacher's channels."""

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


@losses.register("srrl")
class SRRL(ThroughTeacher):
    """mean (pool c(f_s) - pool f_t)^2 + regression * mean (z(c(f_s)) - z(f_t))^2, z through the teacher's classifier.

    Softmax regression representation learning, Yang et al. 2021 (ICLR); weight 1 beside cross-entropy. Takes the last
    maps [B, C, H, W]; c = ReLU(BN(conv1x1)) acts before pooling, as in the authors' code, and both means are over all
    elements.
    """

    def __init__(self, regression: float = 1.0) -> None:
        super().__init__()
        if not 0 <= regression < float("inf"):
            raise InputError(f"regression must be a finite number of at least 0, got {regression}")
        self.regression = regression

    def connect(self, inputs: int, outputs: int) -> list[nn.Module]:
        return conv_bn(inputs, outputs)

    def parts(self, student: Layers, teacher: Layers) -> tuple[Tensor, Tensor]:
        """The unweighted errors of the pooled features and of the logits."""
        f_s, f_t = self.maps(student, teacher)
        self.check_built()
        f_s = self.connector(f_s)
        statistics = F.mse_loss(f_s.mean((2, 3)), f_t.mean((2, 3)))
        return statistics, F.mse_loss(self.classify(f_s), self.classify(f_t))

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        statistics, regression = self.parts(student, teacher)
        return statistics + self.regression * regression

    def extra_repr(self) -> str:
        return f"regression={self.regression:g}"


@losses.register("simkd")
class SimKD(ThroughTeacher):
    """mean (c(f_s) - f_t)^2, the only loss: the student answers with the teacher's classifier on pool c(f_s).

    Chen et al. 2022 (arXiv:2203.14001), section 3; weight 1, no cross-entropy. Takes the last maps [B, C, H, W]. c is
    three convolutions (1x1, 3x3, 1x1) with batch normalisation and ReLU, the inner ones with 1 / ``factor`` of the
    teacher's channels; it stays part of the student, for which :meth:`predict` answers. Larger maps are pooled.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise InputError(f"factor must be at least 1, got {factor}")
        self.factor = factor
        self.size: tuple[int, int] | None = None

    def build(self, student: Layers, teacher: Layers) -> None:
        super().build(student, teacher)
        height, width = self.maps(student, teacher)[1].shape[-2:]
        self.size = height, width

    def connect(self, inputs: int, outputs: int) -> list[nn.Module]:
        middle = max(outputs // self.factor, 1)
        return [*conv_bn(inputs, middle), *conv_bn(middle, middle, kernel=3), *conv_bn(middle, outputs)]

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        f_s, f_t = same_size(*self.maps(student, teacher))
        self.check_built()
        return F.mse_loss(self.connector(f_s), f_t)

    def predict(self, student: Tensor) -> Tensor:
        """The student's logits [B, C] for its feature map."""
        self.check_built()
        assert self.size is not None
        size = [min(sides) for sides in zip(student.shape[-2:], self.size)]
        return self.classify(self.connector(pool(student, size)))

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def catkd(student: Tensor, teacher: Tensor, resolution: int = 2, normalise: bool = True) -> Tensor:
    """mean (M_s - M_t)^2 of class activation maps [B, C, H, W] pooled to ``resolution``, each of unit length."""
    if student.shape[1] != teacher.shape[1]:
        raise InputError(
            f"CAT-KD needs one map per class from both sides, got {student.shape[1]} and {teacher.shape[1]}"
        )
    m_s, m_t = (pool(side, (resolution, resolution)).flatten(2) for side in (student, teacher))
    if normalise:
        m_s, m_t = F.normalize(m_s, dim=2), F.normalize(m_t, dim=2)
    return F.mse_loss(m_s, m_t)


@losses.register("catkd")
class CATKD(nn.Module):
    """mean (M_s - M_t)^2, M a class's activation map pooled to 2x2, of unit length; summed over layers.

    Guo et al. 2023 (arXiv:2304.12777), section 3; maps [B, C, H, W] of the classifier before pooling
    (``logit_map``). Weight 400; the CIFAR-100 recipes run ``normalise=false`` with a weight by pair.
    """

    def __init__(self, resolution: int = 2, normalise: bool = True) -> None:
        super().__init__()
        check("batchmean", resolution=resolution)
        self.resolution, self.normalise = resolution, normalise

    def forward(self, student: Layers, teacher: Layers) -> Tensor:
        both = pairs("CAT-KD", student, teacher)
        return torch.stack([catkd(s, t, self.resolution, self.normalise) for s, t in both]).sum()

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}" + ("" if self.normalise else ", normalise=False")
