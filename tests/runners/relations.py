"""Relations between samples or channels, statistics of maps, and contrastive losses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from kd.losses.cc import cc, cc_kernel
from kd.losses.crd import CRD
from kd.losses.fsp import FSP
from kd.losses.ickd import ickd
from kd.losses.kdsvd import KDSVD
from kd.losses.nst import NST
from kd.losses.pkt import PKT
from kd.losses.ressl import ReSSL, ressl
from kd.losses.rkd import RKD, rkd_angle, rkd_distance
from kd.losses.sp import SP
from runners import Inputs, runs


def _layers(given: Inputs, count: int) -> tuple[list[Tensor], list[Tensor]]:
    return [given[f"f_s_{i}"] for i in range(count)], [given[f"f_t_{i}"] for i in range(count)]


@runs("sp", "nst")
def per_layer(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = NST() if "kernel" in hp else SP()
    student, teacher = _layers(given, hp["layers"])
    parts = [loss(s, t) for s, t in zip(student, teacher)]
    return {"loss": loss(student, teacher), "per_layer": torch.stack(parts)}


@runs("fsp", "kdsvd")
def per_pair(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = KDSVD(k=hp["k"]) if "k" in hp else FSP()
    student, teacher = _layers(given, hp.get("layers") or hp["taps"])
    parts = [loss(list(s), list(t)) for s, t in zip(pairwise(student), pairwise(teacher))]
    return {"loss": loss(student, teacher), "per_pair": torch.stack(parts)}


@runs("cc")
def correlation(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": cc(given["f_s"], given["f_t"])}


@runs("cc_kernel_bilinear", "cc_kernel_gaussian")
def correlation_kernel(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": cc_kernel(given["f_s"], given["f_t"], hp["type"], hp["gamma"], hp["max_p"])}


@runs("rkd")
def relational(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    s, t = given["f_s"], given["f_t"]
    parts = {"distance": rkd_distance(s, t), "angle": rkd_angle(s, t)}
    return {"loss": RKD(distance=hp["w_d"], angle=hp["w_a"])(s, t), **parts}


@runs("pkt")
def probabilistic(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": PKT()(given["f_s"], given["f_t"])}


@runs("ickd")
def inter_channel(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    # the case is torchdistill's port: divided by B once more, and without the convolution
    return {"loss": ickd(given["f_s"], given["f_t"]) / len(given["f_s"])}


class _Sides(CRD):
    def forward(self, *given: Tensor) -> Tensor:  # type: ignore[override]
        return self.sides(*given)


@runs("crd")
def contrastive(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = _Sides(hp["nce_k"], hp["nce_t"], hp["nce_m"], hp["feat_dim"], hp["n_data"]).double()
    loss.build(given["f_s_0"], given["f_t_0"])
    loss.memory_student, loss.memory_teacher = given["memory_v1"].clone(), given["memory_v2"].clone()
    sources = {name: f"embed_{name[6]}.linear.{name.rpartition('.')[2]}" for name, _ in loss.named_parameters()}
    weights = {name: given[source] for name, source in sources.items()}
    answer: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for step in range(hp["steps"]):
        features = (given[f"f_s_{step}"], given[f"f_t_{step}"], given[f"contrast_idx_{step}"])
        sides = functional_call(loss, weights, features)
        parts = {
            "loss": sides.sum(),
            "s_loss": sides[0],
            "t_loss": sides[1],
            "memory_v1_after": loss.memory_student.clone(),
            "memory_v2_after": loss.memory_teacher.clone(),
        }
        answer |= {f"{name}_step{step}": value for name, value in parts.items()}
        total = total + sides.sum()
    return {**answer, "Z": loss.log_z.exp(), "loss": total}


@runs("ressl")
def relations_to_queue(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = ReSSL(hp["temperature_student"], hp["temperature_teacher"], hp["K"]).double()
    loss.queue, loss.pointer = given["queue"].clone(), torch.tensor([hp["ptr0"]])
    answer: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for step in range(hp["steps"]):
        q, k = given[f"q_{step}"], given[f"k_{step}"]
        # the case's gradients are those of the unit vectors, and the module normalises: hence the function
        total = total + ressl(q, k, loss.queue.clone(), loss.T, loss.T_teacher)
        parts = {"loss": loss(q, k), "queue_after": loss.queue.clone(), "ptr_after": loss.pointer.clone()}
        answer |= {f"{name}_step{step}": value for name, value in parts.items()}
    return {**answer, "loss": total}


def _vectors(batch: int) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(batch)
    return {side: torch.randn(batch, width, generator=noise) for side, width in (("student", 8), ("teacher", 16))}


def _placed(batch: int) -> dict[str, Any]:
    return {**_labelled(batch), "index": torch.arange(batch) * 7 % 64}


def _labelled(batch: int) -> dict[str, Any]:
    return {**_vectors(batch), "labels": torch.arange(batch) % 10}


def _maps(batch: int, widths: tuple[int, int] = (8, 16)) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(batch)
    sides = zip(("student", "teacher"), widths)
    return {side: torch.randn(batch, width, 8, 8, generator=noise).relu() for side, width in sides}


def _chain(batch: int) -> dict[str, Any]:
    below, above = _maps(batch, (4, 4)), _maps(batch + 1, (6, 6))
    return {side: [below[side], above[side][:batch, :, ::2, ::2]] for side in below}


EXAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {
    "cc": _vectors,
    "cc_kernel": _vectors,
    "crd": _placed,
    "crd_batch": _labelled,
    "fsp": _chain,
    "ickd": _maps,
    "kdsvd": _chain,
    "nst": _maps,
    "pkt": _vectors,
    "ressl": _vectors,
    "rkd": _vectors,
    "sp": _maps,
}
