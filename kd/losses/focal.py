"""The focal loss: confidently correct samples have little weight (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd.losses._checks import check_not_negative
from kd.losses.cross_entropy import Weighted, labelled, samples_of
from kd.registry import losses


def focal_loss(
    student: Tensor, labels: Tensor, gamma: float = 2.0, weight: Tensor | None = None, shared: bool = False
) -> Tensor:
    """Mean over the labelled samples of -sum_c y_c (1 - q_c)^gamma log q_c, q = softmax(student), in nats; 0 for none.

    Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv:1708.02002), equations 4 and 5, over the classes of
    a softmax where theirs has a sigmoid for each; gamma = 0 is cross-entropy.

    Args:
        student: logits [B, C].
        labels: class numbers [B], -1 where unknown, or class probabilities [B, C], all 0 where unknown.
        gamma: at least 0; the larger, the less confident samples count.
        weight: of each class [C], the paper's alpha; the mean is then the weighted one of
            :func:`~kd.losses.cross_entropy`.
        shared: as of :func:`~kd.losses.cross_entropy`.
    """
    has_label = labelled(labels)
    log_q = F.log_softmax(student, -1)
    shares = labels.to(log_q) if labels.ndim == 2 else F.one_hot(labels.clamp(min=0), student.shape[-1]).to(log_q)
    weight = None if weight is None else weight.to(student)
    complement = -log_q.expm1()  # 1 - q, exact where q is nearly 1
    # at q = 1 the power's gradient is infinite for gamma < 1, while the term's own is 0
    terms = -shares * complement.clamp(min=1e-12) ** gamma * log_q
    each = terms.sum(-1) if weight is None else terms @ weight
    return (each * has_label).sum() / samples_of(labels, has_label, weight, shared)


@losses.register("focal")
class Focal(Weighted):
    """Focal loss: mean over the batch of -(1 - q_y)^gamma log q_y, natural log.

    Lin et al. 2017 (arXiv:1708.02002). It accepts labels and ``class_weights`` (the paper's alpha) as ``ce`` does. See
    :func:`focal_loss`.
    """

    def __init__(self, gamma: float = 2.0, class_weights: Sequence[float] | str | None = None) -> None:
        super().__init__(class_weights)
        check_not_negative(gamma=gamma)
        self.gamma = gamma

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        return focal_loss(student, labels, self.gamma, self.class_weights.value, self.shared)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [f"gamma={self.gamma:g}", self.class_weights.extra_repr()]))
