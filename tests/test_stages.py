"""Names for all stages and the last one, for networks of the zoo, torchvision, timm and the user."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kd
from kd import Objective, Taps, Term
from kd.errors import InputError
from kd.losses import AT
from kd.models.hub import timm, torchvision
from kd.models.normalized import Normalized
from kd.models.stages import measured

ZOO = {
    "resnet8": 3,
    "wrn_16_1": 3,
    "vgg8": 4,
    "MobileNetV2": 4,
    "ShuffleV1": 3,
    "ShuffleV2": 3,
    "ResNet18": 4,
    "cnn": 2,
}


@pytest.mark.parametrize(("name", "count"), ZOO.items())
def test_stage_names_work_for_every_zoo_network(name: str, count: int) -> None:
    network = kd.models[name](classes=10)
    words = ["stages", "stages.pre", "stages[:-1]", "stages[1:]", "stage-1", "stage-2", "stage-1.pre"]
    tapped = Taps(network, [*words, *(f"stage{k}" for k in range(1, count + 1))])(torch.rand(2, 3, 32, 32))
    every = [tapped[f"stage{k}"] for k in range(1, count + 1)]
    for word, expected in {
        "stages": every,
        "stages[:-1]": every[:-1],
        "stages[1:]": every[1:],
    }.items():
        found = [tapped[f"{word}[{k}]"] for k in range(1, len(expected) + 1)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), word
        assert f"{word}[{len(expected) + 1}]" not in tapped
    assert torch.equal(tapped["stage-1"], every[-1])
    assert torch.equal(tapped["stage-2"], every[-2])
    before = network.aliases.get(f"stage{count}.pre")
    if before is None:  # nothing is activated at its end
        assert torch.equal(tapped["stage-1.pre"], every[-1])
    assert tapped["stage-1.pre"].shape == every[-1].shape
    assert f"stages.pre[{count}]" in tapped


def test_a_transformer_s_stages_are_thirds_of_its_blocks() -> None:
    network = kd.models["vit_tiny"](classes=10, shape=[3, 16, 16])
    tapped = Taps(network, ["stages", "blocks.1", "blocks.3", "blocks.5"])(torch.rand(2, 3, 16, 16))
    assert [torch.equal(tapped[f"stages[{k}]"], tapped[f"blocks.{2 * k - 1}"]) for k in (1, 2, 3)] == [True] * 3


TORCHVISION = {
    "resnet18": ("relu", ["layer1", "layer2", "layer3", "layer4"], "layer4"),
    "vgg11": ("features.1", ["features.4", "features.9", "features.14", "features.19"], "features.19"),
    "vgg11_bn": ("features.2", ["features.6", "features.13", "features.20", "features.27"], "features.27"),
    "mobilenet_v2": ("features.1", ["features.3", "features.6", "features.13", "features.17"], "features.18"),
    "mobilenet_v3_small": ("features.0", ["features.1", "features.3", "features.8", "features.11"], "features.12"),
    "efficientnet_b0": ("features.1", ["features.2", "features.3", "features.5", "features.7"], "features.8"),
    "convnext_tiny": ("features.0.1", ["features.1", "features.3", "features.5", "features.7"], "features.7"),
    "regnet_y_400mf": ("stem", [f"trunk_output.block{k}" for k in (1, 2, 3, 4)], "trunk_output.block4"),
    "densenet121": ("features.relu0", [f"features.denseblock{k}" for k in (1, 2, 3, 4)], "features.norm5"),
    "shufflenet_v2_x1_0": ("conv1", ["stage2", "stage3", "stage4"], "conv5"),
    "swin_t": ("features.0.2:nhwc", [f"features.{k}:nhwc" for k in (1, 3, 5, 7)], "permute"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_stages_of_torchvision_end_before_each_reduction(name: str) -> None:
    network = torchvision(name, 10)
    stem, stages, last = TORCHVISION[name]
    found = measured(network)
    assert [found[f"stage{k}"] for k in range(1, len(stages) + 1)] == stages
    assert f"stage{len(stages) + 1}" not in found
    assert (found["stem"], found["last"]) == (stem, last)


def test_the_value_before_a_residual_network_s_activation_is_the_sum() -> None:
    network = torchvision("resnet18", 10).eval()
    taps = Taps(network, ["stages", "stages.pre"])
    tapped = taps(torch.rand(2, 3, 64, 64))
    for k in range(1, 5):
        before, after = tapped[f"stages.pre[{k}]"], tapped[f"stages[{k}]"]
        assert before.min() < 0
        assert torch.equal(F.relu(before), after)


def test_a_cifar_stem_leaves_a_residual_network_its_four_stages() -> None:
    found = measured(torchvision("resnet18", 10, stem="cifar"))
    assert [found[f"stage{k}"] for k in (1, 2, 3, 4)] == ["layer1", "layer2", "layer3", "layer4"]
    assert found["stem"] == "relu"


TIMM = ("mobilenetv1_100", "resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv2_100", "regnety_002")


@pytest.mark.parametrize("name", TIMM)
def test_stages_of_timm_are_those_of_its_feature_info(name: str) -> None:
    network = timm(name, 10)
    listed = [entry["module"] for entry in network.feature_info][-4:]  # type: ignore[union-attr]
    found = measured(network)
    assert [found[f"stage{k}"] for k in (1, 2, 3, 4)] == listed
    assert "stage5" not in found


def test_a_module_s_own_name_stages_is_still_tapped_by_its_parts_and_maps_with_channels_last_come_as_maps() -> None:
    network = timm("convnext_atto", 10)
    tapped = Taps(network, ["stages", "stages.0"])(torch.rand(2, 3, 64, 64))
    assert torch.equal(tapped["stages[1]"], tapped["stages.0"])
    swin = torchvision("swin_t", 10)
    tapped = Taps(swin, ["stages", "features.1"])(torch.rand(2, 3, 64, 64))
    assert tapped["stages[1]"].shape == (2, 96, 16, 16)
    assert torch.equal(tapped["stages[1]"], tapped["features.1"].movedim(-1, 1))


def test_a_transformer_of_timm_has_thirds_and_its_own_size() -> None:
    network = timm("vit_tiny_patch16_224", 10, options={"img_size": 32, "patch_size": 4})
    found = measured(network)
    assert [found[f"stage{k}"] for k in (1, 2, 3)] == ["blocks.3", "blocks.7", "blocks.11"]


class Own(nn.Module):
    """A network of one's own, without aliases."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 32, 64]
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for k, part in enumerate(self.parts):
            x = part(F.max_pool2d(x, 2) if k else x)
        return self.fc(x.mean((2, 3)))


def test_stages_of_a_custom_network_are_measured_without_changing_it() -> None:
    network = Normalized(Own(), [0.5] * 3, [0.5] * 3)
    network.train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    taps = Taps(network, ["stages", "stages.pre", "last", "stem"])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    tapped = taps(torch.rand(2, 3, 28, 28))
    assert [tapped[f"stages[{k}]"].shape[1] for k in (1, 2, 3)] == [16, 32, 64]
    assert tapped["stages.pre[1]"].min() < 0
    assert not [hook for module in network.modules() for hook in module._forward_pre_hooks][3:]


def test_network_without_stages_is_refused() -> None:
    with pytest.raises(InputError, match="the stages of MLP cannot be detected; name its layers"):
        Taps(kd.models["mlp"](classes=3, shape=[1, 8, 8]), ["stages"])
    network = kd.models["resnet8"](classes=10)
    for word in ("stage-4", "stages[3:]"):
        with pytest.raises(InputError, match="ResNet has 3 stages"):
            Taps(network, [word])
    with pytest.raises(InputError, match="unknown layer"):
        Taps(network, ["stagse"])


def test_of_unequal_networks_the_first_stages_are_compared_and_lists_are_flattened() -> None:
    student, teacher = kd.models["MobileNetV2"](classes=10).eval(), kd.models["wrn_16_1"](classes=10).eval()
    objective = Objective({"at": Term(AT(), student=["stem", "stages"], teacher=["stem", "stages"])})
    images = torch.rand(2, 3, 32, 32)
    answers = [
        Taps(network, objective.layers(side))(images) for side, network in (("student", student), ("teacher", teacher))
    ]
    objective.build(*answers)
    (term,) = (term for _, term in objective.named_terms())
    assert term.common == 3
    assert [len(term.pick(side, tapped)) for side, tapped in zip(("student", "teacher"), answers)] == [4, 4]
    total, _ = objective(answers[0], torch.zeros(2, dtype=torch.long), answers[1])
    names = ["stem", "stage1", "stage2", "stage3"]
    named = [[Taps(network, names)(images)[name] for name in names] for network in (student, teacher)]
    torch.testing.assert_close(total, AT()(*named))


def test_stage_names_work_for_ensemble_members() -> None:
    members = {name: kd.Frozen(kd.models["resnet8"](classes=4)) for name in ("a", "b")}
    ensemble = kd.distill.Ensemble(members)
    ensemble.tap(["a/stages"])
    answer = ensemble(kd.Batch(torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)))
    term = Term(AT(), student="stages", teacher="a/stages")
    assert len(term.pick("teacher", answer)) == 3
