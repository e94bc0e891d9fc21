"""Models: sizes, inputs of any kind, and weights from files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kd
from kd import Normalized
from kd.errors import InputError

# parameters for 100 classes, as in RepDistiller and mdistiller
SIZES = {
    "resnet8": 83892,
    "resnet14": 181108,
    "resnet20": 278324,
    "resnet32": 472756,
    "resnet44": 667188,
    "resnet56": 861620,
    "resnet110": 1736564,
    "resnet8x4": 1233540,
    "resnet32x4": 7433860,
}


@pytest.mark.parametrize("name", SIZES)
def test_residual_networks_have_the_published_size(name: str) -> None:
    assert sum(p.numel() for p in kd.models[name](classes=100).parameters()) == SIZES[name]


@pytest.mark.parametrize("name", ["resnet8", "cnn", "mlp"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
def test_small_and_grey_images_are_accepted(name: str, shape: tuple[int, int, int]) -> None:
    options = {"shape": shape} if name == "mlp" else {"channels": shape[0]}
    network = Normalized(kd.models[name](classes=7, **options), [0.5] * shape[0], [0.2] * shape[0]).eval()
    pixels = torch.randint(0, 256, (2, *shape)).to(torch.uint8)
    logits = network(pixels)
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits, network(pixels.float() / 255))


def test_normalisation_is_no_part_of_the_weights() -> None:
    network = kd.models["cnn"](classes=3)
    assert list(Normalized(network, [0.1] * 3, [1.0] * 3).state_dict()) == [
        f"net.{key}" for key in network.state_dict()
    ]
    with pytest.raises(InputError, match="std above 0"):
        Normalized(network, [0.0], [0.0])


def test_hub_fits_classes_and_channels() -> None:
    network = kd.models["torchvision"](name="resnet18", classes=7, channels=1)
    assert network.eval()(torch.rand(1, 1, 64, 64)).shape == (1, 7)
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        kd.models["torchvision"](name="resnet19", classes=7)


def make_net(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 16, num_classes))


def test_import_path_builds_the_named_network() -> None:
    network = kd.models["import"](path=f"{__name__}:make_net", classes=5, shape=[2, 4, 4])
    assert network(torch.rand(1, 2, 4, 4)).shape == (1, 5)
    with pytest.raises(InputError, match="cannot import"):
        kd.models["import"](path="no_such_module:f", classes=5, shape=[2, 4, 4])
