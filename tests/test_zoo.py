"""The zoo against recorded facts: keys, shapes, sizes, logits and taps of 24 networks, in float64.

``golden/models.json`` holds them for weights and images that are an integer hash of key and position.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kd
from kd import Taps
from kd.models.cost import size_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "models.json").read_text())
ZOO: dict[str, dict[str, Any]] = GOLDEN["architectures"]


def hashed(key: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Numbers between 0 and 1 from the position of the key and of the element: ``fill_formula`` in the file."""
    h: np.ndarray = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
    h += np.uint32((key + 1) * 2246822519 % 2**32)
    h = (h ^ (h >> 16)) * np.uint32(2246822507)
    h = (h ^ (h >> 13)) * np.uint32(3266489909)
    h ^= h >> 16
    return torch.from_numpy((h + 0.5) / 2**32).view(shape)


def fill(state: dict[str, Tensor], gain: float) -> None:
    for position, (name, tensor) in enumerate(state.items()):
        u = hashed(position, tensor.shape)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            u = 0.5 + u
        elif name.endswith((".running_mean", ".bias")):
            u = 0.2 * (u - 0.5)
        elif tensor.ndim == 1:
            u = 0.75 + 0.5 * u
        else:
            u = (2 * u - 1) * gain * math.sqrt(6 / math.prod(tensor.shape[1:]))
        tensor.copy_(u)


def recorded_taps(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The words for the network's layers, each with what is recorded there."""
    taps, before = ZOO[name]["feature_taps"], ZOO[name]["feature_taps_preact"]
    stages = range(1, len(taps) - 1)
    yield "stem", taps[0]
    yield from ((f"stage{k}", taps[k]) for k in stages)
    # a stage that ends in no activation is recorded with the same numbers before it
    yield from ((f"stage{k}.pre", before[k]) for k in stages if before[k]["mean"] != taps[k]["mean"])
    yield "embedding", taps[-1]


def check_tap(name: str, tap: Tensor, recorded: dict[str, Any]) -> None:
    assert list(tap.shape) == recorded["shape"], name
    assert bool(tap.min() < 0) == recorded["min_is_negative"], name
    found = [tap.mean(), tap.std(correction=0), *tap.flatten()[recorded["sample_flat_indices"]]]
    expected = [recorded["mean"], recorded["std"], *recorded["sample_values"]]
    assert [float(f) for f in found] == pytest.approx(expected, rel=1e-8, abs=1e-10), name


def test_the_hash_is_the_recorded_one() -> None:
    for label, values in GOLDEN["fill_formula"]["check_values_u"].items():
        key = int(label.split(",")[0].removeprefix("k="))
        assert hashed(key, (4,)).tolist() == values


@pytest.mark.parametrize("name", ZOO)
def test_keys_sizes_logits_and_taps_are_the_recorded_ones(name: str) -> None:
    facts = ZOO[name]
    network = kd.models[name](classes=100).double().eval()
    assert [[key, list(tensor.shape)] for key, tensor in network.state_dict().items()] == facts["state_dict"]
    fill(network.state_dict(), facts["fill_gain"])
    recorded = dict(recorded_taps(name))
    words = [*recorded, "last", "logit_map"]
    assert set(words) == set(network.aliases)
    with torch.no_grad():
        tapped = Taps(network, words)(4 * (hashed(999999, (2, 3, 32, 32)) - 0.5))
    expected = torch.tensor(facts["logits"], dtype=torch.float64)
    torch.testing.assert_close(tapped[""], expected, rtol=0, atol=1e-8 * facts["logits_max_abs"])
    for word, record in recorded.items():
        check_tap(word, tapped[word], record)
    torch.testing.assert_close(tapped["last"].mean((2, 3)), tapped["embedding"])
    torch.testing.assert_close(tapped["logit_map"].mean((2, 3)), tapped[""])


@pytest.mark.parametrize("name", ZOO)
def test_parameters_and_multiply_accumulates_are_the_recorded_ones(name: str) -> None:
    facts = ZOO[name]
    with torch.device("meta"):
        network = kd.models[name](classes=100)
        size = size_of(network, [3, 32, 32])
    assert size == {"parameters": facts["parameters"], "macs": facts["macs_conv_linear_32x32"]}


@pytest.mark.parametrize("name", ZOO)
def test_images_of_every_size_and_kind_are_accepted(name: str) -> None:
    for channels, height, width in [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 33, 47), (2, 96, 96)]:
        with torch.device("meta"):
            network = kd.models[name](classes=7, channels=channels).eval()
            tapped = Taps(network, ["last", "logit_map"])(torch.empty(2, channels, height, width))
        assert tapped[""].shape == (2, 7)
        assert tapped["logit_map"].shape == (2, 7, *tapped["last"].shape[2:])


@pytest.mark.parametrize("name", sorted(name for name in kd.models if name not in ("import", "timm", "torchvision")))
def test_arguments_have_the_libraries_names_too(name: str) -> None:
    make = kd.models[name]
    with torch.device("meta"):
        states = [
            {key: tensor.shape for key, tensor in network.state_dict().items()}
            for network in (
                make(num_classes=7, in_channels=1),
                make(classes=7, channels=1),
                make(7, (1, 32, 32) if "shape" in inspect.signature(make).parameters else 1),
            )
        ]
    assert states[0] == states[1] == states[2]
    assert make.__module__.startswith("kd.models.")
    with pytest.raises(TypeError, match="got both classes and num_classes"):
        make(classes=7, num_classes=7)


def test_networks_of_libraries_take_the_libraries_names() -> None:
    network = kd.models["torchvision"]("resnet18", num_classes=7, in_channels=1)
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_vgg_halves_large_images_once_more() -> None:
    with torch.device("meta"):
        taps = Taps(kd.models["vgg8"](classes=7).eval(), ["last"])
        sizes = [taps(torch.empty(1, 3, size, size))["last"].shape[-1] for size in (32, 56, 64)]
    assert sizes == [4, 7, 4]


@pytest.mark.parametrize("name", ZOO)
def test_a_training_step_with_taps_is_finite_and_reaches_everything_once(name: str) -> None:
    torch.manual_seed(0)
    network = kd.models[name](classes=5, channels=1).train()
    tapped = Taps(network, network.aliases)(torch.rand(4, 1, 8, 8))
    F.cross_entropy(tapped[""], torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert {int(n) for key, n in network.named_buffers() if key.endswith("num_batches_tracked")} == {1}


@pytest.mark.parametrize("name", ZOO)
def test_the_initialisation_is_the_recorded_one(name: str) -> None:
    torch.manual_seed(0)
    network, says = kd.models[name](classes=100), ZOO[name]["init_in_reference"]
    large = {key: w for key, w in network.named_parameters() if w.ndim > 1 and w.numel() > 2000}
    for key, weight in large.items():
        std = 1 / math.sqrt(3 * math.prod(weight.shape[1:]))
        if weight.ndim == 4 and says != "PyTorch defaults":
            std = math.sqrt(2 / (weight.shape[0] * math.prod(weight.shape[2:])))
        if weight.ndim == 2 and "linear N(0,0.01)" in says:
            std = 0.01
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.1), key
    biases = [m.bias for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
    assert all(bool(bias.any()) != says.endswith("bias 0") for bias in biases)
