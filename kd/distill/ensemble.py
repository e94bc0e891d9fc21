"""Several teachers combined into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.data.per_device import PerDevice
from kd.distill.teacher import Frozen, FrozenTeacher
from kd.errors import InputError, unknown

AVERAGES = ("probabilities", "logits")


class Ensemble(FrozenTeacher):
    """Several teachers combined into one.

    Args:
        members: frozen or cached teachers by name; each has its own normalisation and columns.
        average: ``probabilities``, the weighted mean of softmax(z / T), returned as the logits
            ``T * log(mean)``, so that a term with the same T recovers exactly that mean; or ``logits``, whose softmax
            is the normalised geometric mean. Hinton et al. 2015 (arXiv:1503.02531), section 1, mention both.
        weights: one number per member, normalised to a sum of 1; equal if None.
        confidence: multiplies each member's weight by exp(-H(p)) of its own prediction at T = 1, for each image:
            confident members weigh more. Unlike the weights of CA-MKD (arXiv:2201.00007), which depend on the
            label, these also exist in validation and for unlabelled images.
        T: temperature of the averaged probabilities.

    Layers of a member are tapped as ``member/layer``.

    Raises:
        InputError: fewer than two members, an unknown average, or weights that are not positive numbers.
    """

    members: dict[str, Any]
    log_shares: PerDevice

    def __init__(
        self,
        members: Mapping[str, Any],
        average: str = "probabilities",
        weights: Sequence[float] | None = None,
        confidence: bool = False,
        T: float = 4.0,
    ) -> None:
        super().__init__({name: member.network for name, member in members.items()})
        if len(members) < 2:
            raise InputError(f"an ensemble needs at least two members, got {', '.join(members) or 'none'}")
        if average not in AVERAGES:
            raise unknown("average", average, AVERAGES)
        share = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
        if len(share) != len(members) or not all(0 < weight < float("inf") for weight in share):
            raise InputError(f"weights must be a positive number for each of the {len(members)} members, got {weights}")
        self.__dict__["members"] = dict(members)
        self.average, self.confidence, self.T = average, confidence, T
        self.shares = [weight / sum(share) for weight in share]
        self.__dict__["log_shares"] = PerDevice(torch.tensor(self.shares).log())

    def frozen_members(self) -> dict[str, Frozen]:
        return {name: frozen for name, member in self.members.items() for frozen in member.frozen_members().values()}

    def cached_members(self) -> dict[str, Any]:
        return {name: cached for name, member in self.members.items() for cached in member.cached_members().values()}

    def owned_modules(self) -> list[nn.Module]:
        return [network for member in self.members.values() for network in member.owned_modules()]

    def describe(self) -> str:
        """A one-line description: the kind of mean and the weights."""
        shares = ", ".join(f"{name} {share:.3g}" for name, share in zip(self.members, self.shares))
        mean = f"of probabilities at T={self.T:g}" if self.average == "probabilities" else "of logits"
        return f"ensemble, mean {mean}, weights {shares}{', times exp(-entropy)' if self.confidence else ''}"

    def on_epoch_end(self) -> None:
        for member in self.members.values():
            member.on_epoch_end()

    def flush(self) -> None:
        for member in self.members.values():
            member.flush()

    def log_metrics(self) -> dict[str, float]:
        metrics = [member.log_metrics() for member in self.members.values()]
        return {key: sum(each.get(key, 0.0) for each in metrics) / len(metrics) for key in metrics[0]}

    def tap(self, layers: Iterable[str]) -> None:
        """Sets the layers to tap, as ``member/layer``, replacing any set before."""
        wanted: dict[str, list[str]] = {name: [] for name in self.members}
        for layer in layers:
            name, _, inner = layer.partition("/")
            if name not in wanted or not inner:
                raise unknown("layer of an ensemble (write member/layer)", layer, [f"{n}/..." for n in self.members])
            wanted[name].append(inner)
        for name, inner_layers in wanted.items():
            self.members[name].tap(inner_layers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": the mean as logits [B, C], member/layer: tensor, ...}``, without gradient."""
        answers = {name: member(batch) for name, member in self.members.items()}
        tapped = {f"{name}/{layer}": t for name, outputs in answers.items() for layer, t in outputs.items() if layer}
        return {"": self.mean([outputs[""] for outputs in answers.values()]), **tapped}

    def mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Combines the members' logits [B, C] into one tensor of logits [B, C]."""
        stacked = torch.stack([z.float() for z in logits])
        weights = self.log_shares.on(stacked.device)[0][:, None].expand(-1, stacked.shape[1])
        if self.confidence:
            logp = stacked.log_softmax(-1)
            weights = (weights + (logp.exp() * logp).sum(-1)).log_softmax(0)
        if self.average == "logits":
            return (weights.exp()[..., None] * stacked).sum(0)
        return self.T * torch.logsumexp((stacked / self.T).log_softmax(-1) + weights[..., None], 0)
