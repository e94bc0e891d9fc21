"""Losses on feature maps: layer by layer, fused, or through a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kd.losses._through_teacher import ThroughTeacher
from kd.losses.ab import AB
from kd.losses.at import AT
from kd.losses.catkd import CATKD
from kd.losses.cwd import CWD
from kd.losses.fitnets import FitNets
from kd.losses.ft import FT, factor_transfer
from kd.losses.ofd import OFD, ofd, ofd_margin
from kd.losses.pkd import PKD
from kd.losses.reviewkd import ReviewKD, hcl
from kd.losses.semckd import semckd
from kd.losses.simkd import SimKD
from kd.losses.srd import srd
from kd.losses.srrl import SRRL
from kd.losses.vid import VID
from runners import Inputs, runs


def _layers(given: Inputs, count: int) -> tuple[list[Tensor], list[Tensor]]:
    return [given[f"f_s_{i}"] for i in range(count)], [given[f"f_t_{i}"] for i in range(count)]


def _run(loss: nn.Module, given: Inputs, places: dict[str, str], student: Any, teacher: Any) -> Tensor:
    """The built loss with the case's weights, which ``places`` names: their prefix to ours.

    The weights are also copied into the loss, for what a case asks of it beside its value.
    """
    weights = {
        ours + name.removeprefix(theirs): tensor
        for name, tensor in given.items()
        for theirs, ours in places.items()
        if name.startswith(theirs)
    }
    assert set(weights) == dict(loss.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in loss.named_parameters():
            parameter.copy_(weights[name])
    return functional_call(loss, weights, (student, teacher))


@runs("fitnets")
def fitnets(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = FitNets(regressor=False)
    loss.build(given["f_s"], given["f_t"])
    return {"loss": loss(given["f_s"], given["f_t"])}


@runs("fitnets_regressor")
def fitnets_regressor(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = FitNets()
    loss.build(given["f_s"], given["f_t"])
    value = _run(loss, given, {"w.": "connectors.0."}, given["f_s"], given["f_t"])
    return {"loss": value, "regressed": loss.connectors[0](given["f_s"])}


@runs("at")
def attention_transfer(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss, layers = AT(hp["p"]), _layers(given, hp["layers"])
    return {"loss": loss(*layers), "per_layer": torch.stack(loss.parts(*layers))}


@runs("at_paper")
def attention_transfer_paper(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": AT(hp["p"], variant="paper")(*_layers(given, hp["layers"]))}


@runs("vid")
def variational(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = VID(hp["init_pred_var"], hp["eps"], hidden=hp["mid_channels"])
    loss.build(given["f_s"], given["f_t"])
    places = {"w.regressor": "connectors.0", "w.log_scale": "scales.0"}
    return {"loss": _run(loss, given, places, given["f_s"], given["f_t"])}


@runs("ab")
def activation_boundaries(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = _layers(given, hp["layers"])
    loss, raw = AB(margin=hp["margin"]), AB(margin=hp["margin"], scale=1.0)
    loss.build(student, teacher)
    sums = []
    for s, t in zip(student, teacher):
        raw.build(s, t)
        sums.append(raw(s, t) * len(t))
    parts = loss.parts(student, teacher)
    return {"loss": loss(student, teacher), "per_layer": torch.stack(parts), "raw_per_layer": torch.stack(sums)}


@runs("ft_repdistiller")
def ft_code(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": factor_transfer(given["f_s"], given["f_t"], hp["p1"], hp["p2"])}


@runs("ft_paper")
def ft_paper(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": factor_transfer(given["f_s"], given["f_t"], p2=hp["p"], variant="paper")}


@runs("ft_modules")
def ft_modules(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    f_s, f_t = given["f_s"], given["f_t"]
    loss = FT(hp["k"], hp["p1"], hp["p2"], reconstruction=1.0)
    loss.build(f_s, f_t)
    loss.on_epoch(loss.init_epochs)
    # the decoder has no place for normalisation, so that its layers stand two apart instead of three
    places = {"para.encoder": "encoder", "trans.encoder": "translator"}
    places |= {f"para.decoder.{3 * i}": f"decoder.{2 * i}" for i in range(3)}
    value = _run(loss, given, places, f_s, f_t)
    factors = {"factor_t": loss.encoder(f_t), "factor_s": loss.translator(f_s)}
    loss.on_epoch(0)
    return {"loss": value, **factors, "paraphraser_reconstruction_mse": loss(f_s, f_t)}


@runs("ofd")
def overhaul(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = _layers(given, hp["layers"])
    layers = range(hp["layers"])
    margins = [ofd_margin(given[f"bn_weight_{i}"], given[f"bn_bias_{i}"]) for i in layers]
    loss = OFD()
    loss.margins = margins
    loss.build(student, teacher)
    loss.connectors = nn.ModuleList(nn.Identity() for _ in layers)  # the case's student has passed its connectors
    sums = [ofd(s, t, m) for s, t, m in zip(student, teacher, margins)]
    return {
        "loss": loss(student, teacher) / hp["divisor"],
        "per_layer_sum": torch.stack(sums),
        **{f"margin_{i}": margin for i, margin in enumerate(margins)},
    }


@runs("reviewkd_hcl")
def hierarchical_context(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss": torch.stack([hcl(s, t) for s, t in zip(*_layers(given, hp["levels"]))]).sum()}


@runs("reviewkd_abf")
def review(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    levels = len(hp["in_channels"])
    student, teacher = _layers(given, levels)
    loss = ReviewKD()
    loss.build(student, teacher)
    places = {}
    for level in range(levels):
        ours = {"conv1": "reduce", "conv2": "expand", "att_conv.0": "attention"}
        places |= {f"abfs.{levels - 1 - level}.{key}": f"fusions.{level}.{name}" for key, name in ours.items()}
    value = _run(loss, given, places, student, teacher) * min(hp["epoch"] / hp["warmup_epochs"], 1.0)
    return {"loss": value, **{f"fused_{level}": fused for level, fused in enumerate(loss.fuse(student, teacher))}}


def _attached(loss: ThroughTeacher, given: Inputs) -> ThroughTeacher:
    classes, channels = given["fc_weight"].shape
    classifier = nn.Linear(channels, classes).double()
    classifier.load_state_dict({"weight": given["fc_weight"], "bias": given["fc_bias"]})
    loss.attach(nn.Identity(), nn.Sequential(nn.Linear(3, 3), classifier))
    loss.build(given["f_s"], given["f_t"])
    return loss


@runs("srrl")
def softmax_regression(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = SRRL(regression=hp["weight"])
    value = _run(_attached(loss, given), given, {"w.Connectors": "connector"}, given["f_s"], given["f_t"])
    statistics, regression = loss.parts(given["f_s"], given["f_t"])
    return {"loss": value, "statistics": statistics, "regression": regression}


@runs("simkd")
def reused_classifier(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = SimKD(hp["factor"])
    value = _run(_attached(loss, given), given, {"w.transfer": "connector"}, given["f_s"], given["f_t"])
    small = nn.functional.adaptive_avg_pool2d(given["f_s"], min(given["f_s"].shape[-1], given["f_t"].shape[-1]))
    return {"loss": value, "trans_feat_s": loss.connector(small), "pred": loss.predict(given["f_s"])}


@runs("catkd")
def class_attention(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = CATKD(hp["cam_resolution"], hp["normalize"])
    return {"loss": loss(given["cam_s"], given["cam_t"])}


@runs("cwd", "pkd")
def one_layer(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    loss = CWD(hp["tau"]) if "tau" in hp else PKD(hp["eps"])
    loss.build(given["f_s"], given["f_t"])
    return {"loss": loss(given["f_s"], given["f_t"])}


@runs("srd")
def simple_recipe(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    sides = [given["f_s"], given["z_s"]], [given["f_t"], given["z_t"]]
    return {"loss": srd(*sides, hp["exponent"], hp["temperature"])}


@runs("semckd")
def semantic_calibration(given: Inputs, hp: dict[str, Any]) -> dict[str, Tensor]:
    students, teachers = range(hp["n_student"]), range(hp["n_teacher"])
    values, targets = ([[given[f"{side}_{i}{j}"] for j in teachers] for i in students] for side in ("v_s", "v_t"))
    return {"loss": semckd(given["weight"], values, targets)}


def _map(batch: int, student: int = 8, teacher: int = 16) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(batch)
    sides = {"student": student, "teacher": teacher}
    return {side: torch.randn(batch, channels, 8, 8, generator=noise) for side, channels in sides.items()}


def _maps(batch: int) -> dict[str, Any]:
    shallow, deep = _map(batch), _map(batch, 12, 24)
    return {side: [shallow[side], deep[side][:, :, ::2, ::2]] for side in shallow}


def _with_vector(batch: int) -> dict[str, Any]:
    return {side: [*maps, maps[-1].mean((2, 3))] for side, maps in _maps(batch).items()}


def _with_logits(batch: int) -> dict[str, Any]:
    features, logits = _map(batch), _map(batch, 10, 10)
    return {side: [features[side].mean((2, 3)), logits[side][:, :, 0, 0]] for side in features}


def _class_maps(batch: int) -> dict[str, Any]:
    return _map(batch, 10, 10)


def _own_layers(batch: int) -> dict[str, Any]:
    features, logits = _map(batch), _map(batch, 10, 10)
    layers = [features["student"], features["teacher"][:, :, ::2, ::2], logits["student"][:, :, 0, 0]]
    return {"student": layers, "labels": torch.arange(batch) % 10}


EXAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {
    "ab": _maps,
    "at": _maps,
    "byot": _own_layers,
    "catkd": _class_maps,
    "cwd": _maps,
    "fitnets": _map,
    "ft": _map,
    "mgd": _map,
    "ofd": _map,
    "pkd": _maps,
    "reviewkd": _with_vector,
    "semckd": _maps,
    "simkd": _map,
    "srd": _with_logits,
    "srrl": _map,
    "vid": _maps,
}
