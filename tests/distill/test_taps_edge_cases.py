"""Taps on networks that behave differently in training, by keyword, run several times, or recomputed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kd
from kd import Distiller, Frozen, Objective, Taps, Term
from kd.errors import InputError
from kd.losses.fitnets import FitNets
from kd.models.activation_checkpointing import recompute


class Net(nn.Module):
    """Two layers and a classifier on images [B, 3, 4, 4]; ``kind`` is how it runs."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind, self.first, self.second, self.fc = kind, nn.Linear(48, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5, inplace=kind == "drop")
        self.shared = self.second

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        if self.kind == "functional":
            F.dropout(x, 0.5, self.training, inplace=True)
        if self.kind == "drop":
            x = self.drop(x)
        if self.kind == "skipped" and self.training:
            return self.fc(x)
        if self.kind == "reentrant":
            x = checkpoint(self.second, x, use_reentrant=True)
        elif self.kind == "checkpointed":
            x = checkpoint(self.second, x, use_reentrant=False)
        else:
            x = self.second(x)
        if self.kind == "twice":
            x = self.shared(x.tanh())
        return self.fc(input=x) if self.kind == "keyword" else self.fc(x)


IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_an_inplace_module_that_acts_in_training_only_does_not_rewrite_a_tap() -> None:
    network = Net("drop")
    taps = Taps(network, ["first"])
    for mode in (False, True, False):
        network.train(mode)
        tapped = taps(IMAGES)
        torch.testing.assert_close(tapped["first"], network.first(IMAGES.flatten(1)))
    assert not network.drop.inplace


def test_an_inplace_function_that_acts_in_training_only_is_refused_when_it_trains() -> None:
    network = Net("functional").eval()
    taps = Taps(network, ["first"])
    taps(IMAGES)
    network.train()
    with torch.no_grad(), pytest.raises(InputError, match="'first' is overwritten in place by the network itself"):
        taps(IMAGES)


def test_layer_skipped_in_training_gives_a_one_line_error() -> None:
    network = Net("skipped").eval()
    taps = Taps(network, ["second", "second@fc"])
    assert taps(IMAGES)["second"].shape == (2, 6)
    network.train()
    with pytest.raises(InputError, match="layer 'second' of Net did not run in training mode"):
        taps(IMAGES)


@pytest.mark.parametrize("kind", ["skipped", "functional", "reentrant"])
def test_distiller_refuses_it_before_training_without_changing_the_student(kind: str) -> None:
    def made(student: nn.Module) -> Distiller:
        terms = Objective(
            {"hint": Term(FitNets(), student="second" if kind != "functional" else "first", teacher="fc")}
        )
        return Distiller(student, Frozen(Net()), terms, None, (3, 4, 4), 3)

    with pytest.raises(InputError, match=r"did not run|overwritten|without gradient"):
        made(Net(kind))
    torch.manual_seed(0)
    student = kd.models["resnet8"](classes=3)
    before, state = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    terms = Objective({"hint": Term(FitNets(), student="layer1", teacher="layer1")})
    torch.manual_seed(0)
    Distiller(student, Frozen(kd.models["resnet8"](classes=3)), terms, None, (3, 8, 8), 3)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert len(state)


def test_the_input_of_a_layer_that_is_called_by_keyword() -> None:
    network = Net("keyword").eval()
    tapped = Taps(network, ["fc:in", "fc"])(IMAGES)
    torch.testing.assert_close(network.fc(tapped["fc:in"]), tapped[""])
    torch.testing.assert_close(tapped["fc"], tapped[""])


class Several(nn.Module):
    """A layer with several outputs: a tuple, a list, a dictionary or an object."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.inner, self.fc = Inner(kind), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        return self.fc(x)


class Output:
    def __init__(self, state: Tensor, extra: str) -> None:
        self.state, self.extra = state, extra


class Inner(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        if self.kind is Output:
            return Output(2 * x, "more")
        return {"state": 2 * x, "extra": "more"} if self.kind is dict else self.kind([2 * x, "more"])


@pytest.mark.parametrize(
    ("kind", "part", "choice"),
    [(tuple, "0", "inner:0"), (list, "0", "inner:0"), (dict, "state", "inner:state"), (Output, "state", None)],
)
def test_a_layer_with_several_outputs_is_tapped_by_position_or_key(kind: type, part: str, choice: str | None) -> None:
    network, x = Several(kind), torch.randn(2, 4)
    torch.testing.assert_close(Taps(network, [f"inner:{part}"])(x)[f"inner:{part}"], 2 * x)
    with pytest.raises(InputError, match=f"'inner' returns a {kind.__name__}; only tensors can be tapped") as refused:
        Taps(Several(kind), ["inner"])(x)
    assert choice is None or f"use {choice}" in str(refused.value)
    for wrong in ("7", "extra", "stat"):
        with pytest.raises(InputError, match=f"layer 'inner:{wrong}' returns a"):
            Taps(Several(kind), [f"inner:{wrong}"])(x)


def test_the_states_of_a_recurrent_layer_and_attention_are_tapped_by_position() -> None:
    network = nn.Sequential()
    network.add_module("rnn", nn.LSTM(4, 5, batch_first=True))
    assert Taps(network, ["rnn:0"])(torch.rand(2, 3, 4))["rnn:0"].shape == (2, 3, 5)


def test_layer_run_twice_gives_its_last_output_under_both_names() -> None:
    network = Net("twice").eval()
    tapped = Taps(network, ["second", "shared", "second:in"])(IMAGES)
    first = network.second(network.first(IMAGES.flatten(1))).tanh()
    torch.testing.assert_close(tapped["second"], network.second(first))
    torch.testing.assert_close(tapped["shared"], tapped["second"])
    torch.testing.assert_close(tapped["second:in"], first)


@pytest.mark.parametrize("layer", ["second", "second:in"])
def test_activation_checkpointing_gives_the_plain_gradient_and_holds_no_tensors(layer: str) -> None:
    gradients = []
    plain = Net()
    for kind in ("", "checkpointed"):
        network = Net(kind)
        network.load_state_dict(plain.state_dict())
        taps = Taps(network, [layer])
        (taps(IMAGES)[layer].square().sum() + taps(IMAGES)[""].sum()).backward()
        assert not taps._caught, "the second run, for the gradient, is not kept"
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_tap_inside_recomputed_blocks_gives_the_plain_gradient_and_holds_no_tensors() -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        network = kd.models["resnet8"](classes=3)
        if again:
            recompute(network)
        name = next(name for name, module in network.named_modules() if name.startswith("layer2.") and "conv1" in name)
        taps = Taps(network, [name, "layer1"])
        tapped = taps(torch.ones(2, 3, 8, 8) * torch.arange(8) / 8)
        (tapped[name].square().mean() + tapped["layer1"].square().mean()).backward()
        assert not taps._caught
        gradients.append({key: p.grad for key, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key], msg=key)


def test_a_layer_that_runs_without_gradient_in_training_is_refused() -> None:
    network = Net("reentrant")
    taps = Taps(network, ["second"])
    with torch.no_grad():
        taps(IMAGES)
    with pytest.raises(InputError, match=r"layer 'second' runs without gradient, .*use_reentrant=False"):
        taps(IMAGES.requires_grad_())
    IMAGES.requires_grad_(False)


def test_failed_pass_holds_no_tensors_and_the_next_one_works() -> None:
    network = Net()
    taps = Taps(network, ["second"])
    with pytest.raises(RuntimeError):
        taps(torch.rand(2, 5, 5))
    assert not taps._caught
    assert list(taps(IMAGES)) == ["", "second"]
