"""The zoo's transformers: timm's numbers, images of every size, two heads, and DeiT's golden cases in a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kd
from kd import Distiller, Frozen, InputError, Objective, Optim, Taps, Term
from kd.losses import CE, KL, DeiTHard
from kd.models.hub import timm
from kd.models.weights import classifier_names

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())["cases"]
CASES = [case for case in INDEX if case["method"] in ("deit_soft", "deit_hard")]
TIMM = {"vit_tiny": "vit_tiny_patch16_224", "deit_tiny": "deit_tiny_distilled_patch16_224"}
NAMES = sorted(TIMM)


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_logits_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    network = kd.models[name](classes=7, shape=[2, 12, 20]).eval()
    sizes = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 2}
    other = timm(TIMM[name], 7, 2, options=sizes).eval()
    assert list(network.state_dict()) == list(other.state_dict())
    other.load_state_dict(network.state_dict())
    images = torch.randn(3, 2, 12, 20)
    torch.testing.assert_close(network(images), other(images))
    assert classifier_names(network) == classifier_names(other)


@pytest.mark.parametrize("name", NAMES)
@given(patch=st.integers(1, 5), rows=st.integers(1, 4), columns=st.integers(1, 4), channels=st.integers(1, 4))
def test_images_of_every_shape_are_accepted(name: str, patch: int, rows: int, columns: int, channels: int) -> None:
    shape = [channels, patch * rows, patch * columns]
    network = kd.models[name](classes=3, shape=shape, patch=patch, width=8, depth=1, heads=2)
    tapped = Taps(network, network.aliases)(torch.rand(2, *shape))
    assert tapped[""].shape == (2, 3)
    assert tapped["last"].shape == (2, rows * columns + (2 if name == "deit_tiny" else 1), 8)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_taps_reaches_every_parameter(name: str) -> None:
    network = kd.models[name](classes=5, shape=[1, 8, 8])
    tapped = Taps(network, network.aliases)(torch.rand(4, 1, 8, 8))
    F.cross_entropy(tapped[""], torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_image_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="patch=5 does not cut images of 28x28 evenly; these do: 2, 4, 7, 14, 28"):
        kd.models["vit_tiny"](classes=3, shape=[1, 28, 28], patch=5)
    with pytest.raises(InputError, match="multiple of heads"):
        kd.models["vit_tiny"](classes=3, shape=[1, 28, 28], width=9)
    with pytest.raises(InputError, match="images are 32x32, but this transformer was made for 28x28"):
        kd.models["vit_tiny"](classes=3, shape=[1, 28, 28])(torch.rand(1, 1, 32, 32))


def networks() -> dict[str, nn.Module]:
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return {
        "zoo": kd.models["deit_tiny"](classes=3, shape=[1, 8, 8], width=8, depth=1),
        "timm": timm("deit_tiny_distilled_patch16_224", 3, 1, options=small),
    }


@pytest.mark.parametrize("name", ["zoo", "timm"])
@pytest.mark.parametrize("training", [True, False])
def test_the_output_is_the_mean_of_both_heads(name: str, training: bool) -> None:
    network = networks()[name].train(training)
    heads = ("class_head", "distillation_head", "head", "head_dist")
    tapped = Taps(network, heads)(torch.rand(2, 1, 8, 8))
    torch.testing.assert_close(tapped[""], (tapped["class_head"] + tapped["distillation_head"]) / 2)
    assert torch.equal(tapped["class_head"], tapped["head"])
    assert torch.equal(tapped["distillation_head"], tapped["head_dist"])
    assert not torch.equal(tapped["head"], tapped["head_dist"])


def test_of_a_network_with_one_head_both_words_are_its_output() -> None:
    network = kd.models["cnn"](classes=3, channels=1)
    tapped = Taps(network, ["class_head", "distillation_head", "layer1"])(torch.rand(2, 1, 8, 8))
    assert tapped["class_head"] is tapped[""]
    assert tapped["distillation_head"] is tapped[""]
    with pytest.raises(InputError, match="head_dist"):
        Taps(network, ["head_dist"])


class Answers(nn.Module):
    """A network that gives stored logits whatever it sees: one head, or two whose mean is the output."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.head = Stored(logits[0])
        if len(logits) == 2:
            self.head_dist = Stored(logits[1])

    def forward(self, x: Tensor) -> Tensor:
        answers = [head(x) for head in self.children()]
        return torch.stack(answers).mean(0)


class Stored(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)] + 0 * x.sum()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_golden_cases_pass_through_the_lightning_module(case: dict[str, Any]) -> None:
    with np.load(GOLDEN / case["file"], allow_pickle=False) as arrays:
        stored = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    hp, z, z_dist, z_t = case["hyperparameters"], stored["in_z_s"], stored["in_z_dist"], stored["in_z_t"]
    batch, classes = z.shape
    soft = KL(T=hp.get("tau", 1.0), reduction="mean") if case["method"] == "deit_soft" else DeiTHard()
    terms = {"ce": Term(CE(), 1 - hp["alpha"], "class_head"), "kd": Term(soft, hp["alpha"], "distillation_head")}
    student = Answers(z, z_dist)
    plain = Optim(lambda parameters: torch.optim.SGD(parameters, lr=1.0), schedule="constant", warmup=0)
    distiller = Distiller(student, Frozen(Answers(z_t)), Objective(terms), plain, [1, 1, 1], classes)
    loader = DataLoader(TensorDataset(torch.zeros(batch, 1, 1, 1), stored["in_y"]), batch_size=batch)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_steps": 1, "log_every_n_steps": 1, "precision": "64-true", "accelerator": "cpu", "logger": False}
    trainer = pl.Trainer(**options, **quiet)
    trainer.fit(distiller, loader)
    close = {key: case["tolerance"][key] for key in ("rtol", "atol")}
    torch.testing.assert_close(trainer.callback_metrics["train/loss"].double(), stored["out_loss"], **close)
    for head, before, name in ((student.head, z, "z_s"), (student.head_dist, z_dist, "z_dist")):
        torch.testing.assert_close(before - head.logits.detach(), stored[f"out_grad_{name}"], **close)
