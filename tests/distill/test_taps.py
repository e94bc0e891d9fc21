"""Taps on any network, by its own layer names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import kd
from kd import Normalized, Taps
from kd.errors import InputError


def test_outputs_and_inputs_of_named_layers() -> None:
    network = kd.models["resnet8"](classes=10)
    images = torch.rand(2, 3, 16, 16)
    tapped = Taps(network.eval(), ["layer1", "layer3", "fc:in"])(images)
    assert list(tapped) == ["", "layer1", "layer3", "fc:in"]
    torch.testing.assert_close(tapped[""], network(images))
    torch.testing.assert_close(network.fc(tapped["fc:in"]), tapped[""])
    torch.testing.assert_close(tapped["layer3"].mean((2, 3)), tapped["fc:in"])


def test_names_are_those_of_the_network_behind_its_normalisation() -> None:
    network = Normalized(kd.models["cnn"](classes=4, channels=1), [0.5], [0.5])
    assert Taps(network, ["layer2"])(torch.rand(2, 1, 8, 8))["layer2"].shape == (2, 32, 4, 4)


def test_missing_layer_error_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown layer of ResNet 'layr2'; did you mean 'layer2'"):
        Taps(kd.models["resnet8"](classes=10), ["layr2"])


def test_inplace_operations_cannot_rewrite_a_tap() -> None:
    from torchvision.models import resnet18

    network, twin = resnet18(num_classes=5).eval(), resnet18(num_classes=5).eval()
    twin.load_state_dict(network.state_dict())
    seen: list[torch.Tensor] = []
    twin.bn1.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    images = torch.randn(2, 3, 32, 32)
    expected = twin(images)
    with torch.no_grad():
        tapped = Taps(network, ["bn1"])(images)
    assert tapped["bn1"].min() < 0
    torch.testing.assert_close(tapped["bn1"], seen[0])
    torch.testing.assert_close(tapped[""], expected)


def test_taps_work_in_inference_mode() -> None:
    with torch.inference_mode():
        assert Taps(kd.models["cnn"](classes=4), ["layer1"])(torch.rand(2, 3, 8, 8))["layer1"].shape[1] == 16


def test_the_embedding_of_any_network_is_its_last_linear_layers_input() -> None:
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small(num_classes=5).eval()
    tapped = Taps(network, ["embedding"])(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(network.classifier[-1](tapped["embedding"]), tapped[""])


def test_aliases_and_a_classifier_at_every_position() -> None:
    network = kd.models["resnet8"](classes=5).eval()
    tapped = Taps(network, ["stage3", "last", "embedding", "logit_map", "layer3@fc"])(torch.rand(2, 3, 16, 16))
    assert torch.equal(tapped["stage3"], tapped["last"])
    assert torch.equal(tapped["logit_map"], tapped["layer3@fc"])
    torch.testing.assert_close(tapped["logit_map"].mean((2, 3)), tapped[""])
    with pytest.raises(InputError, match="unknown linear layer in 'layer3@fcc' 'fcc'; did you mean 'fc'"):
        Taps(network, ["layer3@fcc"])


class Rewrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x.relu_()
        return x.flatten(1)


def test_a_tap_that_the_network_overwrites_by_itself_is_refused() -> None:
    with torch.no_grad(), pytest.raises(InputError, match="'first' is overwritten in place"):
        Taps(Rewrites(), ["first"])(torch.randn(2, 3, 4, 4))


def test_taps_hold_no_state_between_calls_and_copies_are_independent() -> None:
    network = kd.models["cnn"](classes=4)
    taps = Taps(network, ["layer1"])
    taps(torch.rand(2, 3, 8, 8))
    assert not taps._caught
    twin = copy.deepcopy(taps)
    assert twin(torch.zeros(1, 3, 8, 8))["layer1"].shape[0] == 1
    assert not taps._caught


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    network = nn.Sequential()
    network.add_module("rnn", nn.LSTM(4, 4))
    with pytest.raises(InputError, match="'rnn' returns a tuple"):
        Taps(network, ["rnn"])(torch.rand(2, 3, 4))
