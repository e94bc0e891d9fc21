"""MixUp and CutMix with a computed partner: pure functions of (seed, epoch, index), in integer arithmetic.

A sample's partner comes from the whole training set, so that the result does not depend on the other samples of its
batch. The fraction of the sample's own image is a multiple of 1/65,536: mixed pixels are rounded to uint8, mixed labels
are exact in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.data.erasing import box_mask
from kd.data.per_device import PerDevice
from kd.errors import InputError
from kd.rng import MIX, below, hashed

ONE = 2**16


class Mixing:
    """Mixes each training image and its label with another image and its label.

    Args:
        shape: [C, H, W] of the images.
        classes: number of classes.
        mixup: alpha of MixUp's Beta(alpha, alpha) (Zhang et al. 2018, arXiv:1710.09412), 0 for none.
        cutmix: likewise of CutMix (Yun et al. 2019, arXiv:1905.04899). With both, each sample gets one of them
            with equal probability.

    Raises:
        InputError: an alpha below 0.
    """

    def __init__(self, shape: Sequence[int], classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        if not (0 <= mixup < math.inf and 0 <= cutmix < math.inf):
            raise InputError(f"mixup and cutmix must be finite numbers of at least 0, got {mixup} and {cutmix}")
        self.shape, self.classes, self.mixup, self.cutmix = tuple(shape), classes, mixup, cutmix
        self.tables = PerDevice(quantiles(mixup), box_sizes(quantiles(cutmix), shape))

    def partner(self, index: Tensor, count: int, seed: int, epoch: int | Tensor) -> Tensor:
        """The position [B] of each sample's partner among ``count`` training samples."""
        return below(count, hashed(seed, epoch, index, MIX))

    def __call__(
        self,
        pair: tuple[Tensor, Tensor],
        labels: tuple[Tensor, Tensor],
        index: Tensor,
        seed: int,
        epoch: int | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mixed images [B, C, H, W] as uint8 and labels [B, classes] as probabilities.

        Args:
            pair: the samples' images and their partners', uint8 [B, C, H, W], both augmented.
            labels: likewise, class numbers [B]; where either is -1 (unlabelled), the mixed row is zero.
            index: positions [B].
            seed: of the choices, with ``epoch``.
            epoch: a number, or one for each sample.
        """
        first, other = pair
        shares, sizes = self.tables.on(first.device)
        bits = hashed(seed, epoch, index, MIX + 1 + torch.arange(4, device=index.device)[:, None])
        draw = bits[1] >> 16
        cut = self._cut(bits[0])
        height, width = sizes[draw].unbind(1)
        y, x = (
            below(self.shape[1], bits[2]) - height // 2,
            below(self.shape[2], bits[3]) - width // 2,
        )
        mask = box_mask(y, x, height, width, self.shape) & cut[:, None, None]
        share = torch.where(cut, ONE - mask.sum((1, 2)) * ONE // (self.shape[1] * self.shape[2]), shares[draw])
        weight = torch.where(cut, ONE, share).int()[:, None, None, None]
        blend = ((first * weight + other * (ONE - weight) + ONE // 2) >> 16).to(torch.uint8)
        return torch.where(mask[:, None], other, blend), self._labels(labels, share)

    def _cut(self, bits: Tensor) -> Tensor:
        if self.mixup and self.cutmix:
            return bits % 2 == 1
        return torch.full_like(bits, bool(self.cutmix), dtype=torch.bool)

    def _labels(self, labels: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
        classes = torch.arange(self.classes, device=share.device)
        first, other = ((numbers[:, None] == classes).float() for numbers in labels)
        weight = (share.float() / ONE)[:, None]
        labelled = ((labels[0] >= 0) & (labels[1] >= 0)).float()[:, None]
        return (weight * first + (1 - weight) * other) * labelled

    def describe(self) -> dict[str, Any]:
        """Everything that determines how two images are mixed."""
        return {"mixup": self.mixup, "cutmix": self.cutmix}


def quantiles(alpha: float) -> Tensor:
    """65,536 equally likely values of Beta(alpha, alpha) in 65,536ths, ascending; all ONE for alpha = 0."""
    if not alpha:
        return torch.full((ONE,), ONE)
    from scipy.special import betaincinv  # a dependency of scikit-learn

    values = betaincinv(alpha, alpha, (np.arange(ONE) + 0.5) / ONE)
    return torch.from_numpy(np.round(values * ONE).astype(np.int64))


def box_sizes(shares: Tensor, shape: Sequence[int]) -> Tensor:
    """CutMix's boxes [65,536, 2] for each remaining fraction of the image: sides are sqrt(1 - share) of the image's."""
    side = torch.tensor([math.isqrt(ONE - share) for share in shares.tolist()])[:, None]
    return side * torch.tensor(list(shape[1:])) // math.isqrt(ONE)
