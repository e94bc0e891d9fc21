"""CWD: channel-wise distributions over positions (Shu et al. 2021, arXiv:2011.13256)."""

from __future__ import annotations

from torch import Tensor

from kd.losses._checks import check_positive
from kd.losses._maps import LayerLoss, over_positions
from kd.losses.divergences import kl
from kd.registry import losses


def cwd(student: Tensor, teacher: Tensor, T: float = 4.0) -> Tensor:
    """T^2 * KL of each channel's softmax over positions, mean over batch and channels, for maps of equal shape."""
    over_positions("CWD", student)
    return kl(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), T)


@losses.register("cwd")
class CWD(LayerLoss):
    """T^2 * KL(p_t || p_s), p a channel's softmax over positions; mean over channels, summed over layers.

    Shu et al. 2021 (arXiv:2011.13256), section 3; weight 50 on features, 3 on dense logits. Other channels are
    brought to the teacher's by a 1x1 convolution, larger maps pooled.
    """

    def __init__(self, T: float = 4.0) -> None:
        super().__init__()
        check_positive(T=T)
        self.T = T

    def compare(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return cwd(student, teacher, self.T)

    def extra_repr(self) -> str:
        return f"T={self.T:g}"
