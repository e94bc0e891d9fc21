"""SimKD: the student keeps the teacher's classifier (Chen et al. 2022, arXiv:2203.14001)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.losses._maps import Layers, conv_bn, pool, same_size
from kd.losses._through_teacher import ThroughTeacher
from kd.registry import losses


@losses.register("simkd")
class SimKD(ThroughTeacher):
    """mean (c(f_s) - f_t)^2, the only loss: the student predicts with the teacher's classifier on pool c(f_s).

    Chen et al. 2022 (arXiv:2203.14001), section 3; weight 1, no cross-entropy. Takes the last maps [B, C, H, W]. c is
    three convolutions (1x1, 3x3, 1x1) with batch normalisation and ReLU, the inner ones with 1 / ``factor`` of the
    teacher's channels; it remains part of the student, whose output is :meth:`predict`. Larger maps are pooled.
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
