"""SRRL: the student's features through the teacher's classifier (Yang et al. 2021, ICLR)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._checks import check_not_negative
from kd.losses._maps import Layers, conv_bn
from kd.losses._through_teacher import ThroughTeacher
from kd.registry import losses


@losses.register("srrl")
class SRRL(ThroughTeacher):
    """mean (pool c(f_s) - pool f_t)^2 + regression * mean (z(c(f_s)) - z(f_t))^2, z through the teacher's classifier.

    Softmax regression representation learning, Yang et al. 2021 (ICLR); weight 1 beside cross-entropy. Takes the last
    maps [B, C, H, W]; c = ReLU(BN(conv1x1)) acts before pooling, as in the authors' code, and both means are over all
    elements.
    """

    def __init__(self, regression: float = 1.0) -> None:
        super().__init__()
        check_not_negative(regression=regression)
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
