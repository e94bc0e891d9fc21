"""The divergence family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses import CE, JS, KL, cross_entropy, entropy, js, kl, kl_div, reverse_kl, soft_cross_entropy
from runners import Inputs, runs


@runs("kd")
def kd(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = KL(T=hp["T"])(given["z_s"], given["z_t"])
    return {"loss": loss, "per_sample": kl(given["z_s"], given["z_t"], hp["T"], "none").sum(1)}


@runs("kd_total")
def kd_total(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    ce, soft = CE()(given["z_s"], given["y"]), KL(T=hp["T"])(given["z_s"], given["z_t"])
    return {"loss": hp["alpha"] * ce + (1 - hp["alpha"]) * soft, "ce": ce, "kd": soft}


@runs("kd_kldivmean")
def kd_kldivmean(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    soft = KL(T=hp["T"], reduction="mean")(given["z_s"], given["z_t"])
    return {"loss": hp["alpha"] * soft + (1 - hp["alpha"]) * CE()(given["z_s"], given["y"])}


@runs("js")
def jensen_shannon(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    z_s, z_t = given["z_s"], given["z_t"]
    return {
        "loss": JS(T=hp["T"])(z_s, z_t),
        "per_sample": js(z_s, z_t, hp["T"], "none").sum(1),
        "per_sample_bits": js(z_s, z_t, hp["T"], "none", unit="bits").sum(1),
    }


@runs("soft_ce")
def soft_ce(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": soft_cross_entropy(given["z_s"], given["p_t"])}


@runs("label_smoothing_ce")
def label_smoothing(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": CE(label_smoothing=hp["epsilon"])(given["z_s"], given["y"])}


@runs("kl_identity")
def kl_identity(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    z_s, z_t, T = given["z_s"], given["z_t"], hp["T"]
    divergence = kl(z_s, z_t, T, "none").sum(1)
    crossed = soft_cross_entropy(z_s / T, (z_t / T).softmax(1), "none").sum(1)
    uncertainty = entropy(z_t, T, "none").sum(1)
    return {
        "loss": kl(z_s, z_t, T),
        "kl_per_sample": divergence,
        "cross_entropy_per_sample": crossed,
        "entropy_p_per_sample": uncertainty,
        "entropy_q_per_sample": entropy(z_s, T, "none").sum(1),
        "reverse_kl_per_sample": reverse_kl(z_s, z_t, T, "none").sum(1),
        "identity_residual": divergence - (crossed - uncertainty),
        "kl_elementmean": kl(z_s, z_t, T, "mean"),
        "kl_sum": kl(z_s, z_t, T, "sum"),
    }


@runs("fact_kl_uniform")
def fact_kl_uniform(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    # kl_div refuses tensors without a batch dimension; what torch answers for them is kept here as the trap it is
    flat = F.kl_div(given["log_q"][0], given["p"][0], reduction="batchmean")
    return {"loss": kl_div(given["log_q"], given["p"], hp["reduction"]), "loss_1d_batchmean": flat}


@runs("fact_kl_logits")
def fact_kl_logits(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    z_q, z_p = given["z_in"], given["z_tgt"]
    return {
        "loss": kl(z_q, z_p, 1.0, "sum"),
        "pointwise": kl(z_q, z_p, 1.0, "none"),
        "mean": kl(z_q, z_p, 1.0, "mean"),
        "cross_entropy": soft_cross_entropy(z_q, z_p.softmax(1)),
        "entropy_p": entropy(z_p),
    }


@runs("fact_cross_entropy")
def fact_cross_entropy(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": cross_entropy(given["z"], given["y"])}


def _logits(batch: int, *words: str, classes: int = 10) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(batch)
    student, teacher = torch.randn(2, batch, classes, generator=generator) * 3
    given = {"student": student, "teacher": teacher, "labels": torch.arange(batch) % classes}
    return {word: given[word] for word in words}


def _gaussians(batch: int) -> dict[str, Any]:
    mean_s, log_s, mean_t, log_t = torch.randn(4, batch, 6, generator=torch.Generator().manual_seed(batch))
    return {"student": [mean_s, log_s], "teacher": [mean_t, log_t]}


EXAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {
    "ce": lambda batch: _logits(batch, "student", "labels"),
    "entropy": lambda batch: _logits(batch, "student"),
    "focal": lambda batch: _logits(batch, "student", "labels"),
    "gaussian_kl": _gaussians,
    **dict.fromkeys(
        ("kl", "reverse_kl", "symmetric_kl", "soft_ce", "js", "tv", "alpha_beta"),
        lambda batch: _logits(batch, "student", "teacher"),
    ),
}
