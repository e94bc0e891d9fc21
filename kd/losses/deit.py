"""DeiT: the teacher's most likely class as a label (Touvron et al. 2021, arXiv:2012.12877)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._logits import logit_pair
from kd.registry import losses


@losses.register("deit_hard")
class DeiTHard(nn.Module):
    """CE(student, argmax of the teacher), mean over the batch.

    Logits [B, C]; the student's are those of the distillation head where it has one. Touvron et al. 2021
    (arXiv:2012.12877), eq. 3: 0.5 * CE on the class head + 0.5 * this. The soft variant, eq. 2, is the loss
    ``kl`` with ``reduction=mean``, the scale of the authors' code, or without it, the paper's.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = logit_pair("deit_hard", student, teacher)
        return F.cross_entropy(student, teacher.argmax(dim=1))
