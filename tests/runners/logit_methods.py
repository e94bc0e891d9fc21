"""The logit methods: decoupled, matched and tempered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from kd.losses._logits import standardise
from kd.losses.cross_entropy import cross_entropy
from kd.losses.ctkd import CTKD, ctkd_lambda, ctkd_temperature
from kd.losses.deit import DeiTHard
from kd.losses.dist import DIST, dist_terms
from kd.losses.divergences import kl
from kd.losses.dkd import DKD, dkd_terms
from kd.losses.mlkd import mlkd_terms, mlkd_two_views
from kd.losses.nkd import NKD
from kd.losses.wsld import WSLD
from runners import Inputs, runs


@runs("dkd", "lskd_dkd")
def dkd(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    z_s, z_t, y, standardised = given["z_s"], given["z_t"], given["y"], "eps" in hp
    loss = DKD(hp["alpha"], hp["beta"], hp["T"], standardise=standardised)
    pair = (standardise(z_s, hp["eps"]), standardise(z_t, hp["eps"])) if standardised else (z_s, z_t)
    tckd, nckd = dkd_terms(*pair, y, hp["T"])
    return {"loss": loss(z_s, z_t, y), "tckd": tckd.mean(), "nckd": nckd.mean()}


@runs("lskd")
def lskd(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": kl(standardise(given["z_s"], hp["eps"]), standardise(given["z_t"], hp["eps"]), hp["T"])}


@runs("nkd")
def nkd(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": NKD(hp["gamma"], hp["temp"])(given["z_s"], given["z_t"], given["y"])}


@runs("wsld")
def wsld(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": WSLD(hp["T"])(given["z_s"], given["z_t"], given["y"])}


@runs("wsld_total")
def wsld_total(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": cross_entropy(given["z_s"], given["y"]) + hp["alpha"] * wsld(given, hp)["loss"]}


@runs("dist")
def dist(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    inter, intra = dist_terms(given["z_s"], given["z_t"], hp["tau"])
    return {
        "loss": DIST(hp["beta"], hp["gamma"], hp["tau"])(given["z_s"], given["z_t"]),
        "inter": inter,
        "intra": intra,
    }


@runs("mlkd_terms")
def mlkd(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    instance, batch, class_ = mlkd_terms(given["z_s"], given["z_t"], hp["T"])
    return {"loss": instance + batch + class_, "instance": instance, "batch": batch, "class": class_}


@runs("mlkd_total")
def mlkd_total(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = ([given[f"z_{side}_{view}"] for view in ("weak", "strong")] for side in "st")
    levels = mlkd_two_views(student, teacher, hp["temperatures"], hp["logit_stand"])
    kd, bc, cc = (hp["kd_weight"] * level for level in levels)
    ce = hp["ce_weight"] * sum(cross_entropy(view, given["y"]) for view in student)
    return {"loss": ce + kd + cc + bc, "loss_ce": ce, "loss_kd": kd, "loss_cc": cc, "loss_bc": bc}


@runs("ctkd")
def ctkd(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = CTKD(hp["t_start"], hp["t_end"]).double()
    state = {"theta": given["theta"], "reversal": torch.tensor(hp["lambda"], dtype=torch.float64)}
    return {
        "loss": functional_call(loss, state, (given["z_s"], given["z_t"])),
        "T": ctkd_temperature(given["theta"], hp["t_start"], hp["t_end"]),
    }


@runs("ctkd_lambda_schedule")
def ctkd_lambda_schedule(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    factors = [ctkd_lambda(e, hp["num_loops"], hp["max_value"], hp["min_value"]) for e in given["epoch"].tolist()]
    return {"loss": torch.zeros((), dtype=torch.float64), "lambda": torch.tensor(factors, dtype=torch.float64)}


@runs("deit_soft")
def deit_soft(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    soft = kl(given["z_dist"], given["z_t"], hp["tau"], "mean")
    return {"loss": (1 - hp["alpha"]) * cross_entropy(given["z_s"], given["y"]) + hp["alpha"] * soft}


@runs("deit_hard")
def deit_hard(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    hard = DeiTHard()(given["z_dist"], given["z_t"])
    return {"loss": (1 - hp["alpha"]) * cross_entropy(given["z_s"], given["y"]) + hp["alpha"] * hard}


def _logits(batch: int) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(batch)
    return {side: 3 * torch.randn(batch, 10, generator=noise) for side in ("student", "teacher")}


def _labels(batch: int) -> Tensor:
    return torch.arange(batch) % 10


def _labelled(batch: int) -> dict[str, Any]:
    return {**_logits(batch), "labels": _labels(batch)}


def _virtual(batch: int) -> dict[str, Any]:
    return {"student": _logits(batch)["student"], "labels": _labels(batch)}


def _maps(batch: int) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(batch)
    sizes = {"student": 4, "teacher": 8}
    maps = {side: 3 * torch.randn(batch, 10, size, size, generator=noise) for side, size in sizes.items()}
    return {**maps, "labels": _labels(batch)}


EXAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {
    "ctkd": _logits,
    "deit_hard": _logits,
    "dist": _logits,
    "dkd": _labelled,
    "mlkd": _logits,
    "nkd": _labelled,
    "sdd": _maps,
    "tfkd": _virtual,
    "ttm": _logits,
    "wsld": _labelled,
    "wttm": _logits,
}
