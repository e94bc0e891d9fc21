"""Names, typed nodes and what may be built from a configuration."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf, ValidationError
from torch import Tensor, nn

import kd
import kd.losses
import kd.models
import kd.optim
from kd.errors import InputError
from kd.registry import Registry, build, losses, nested
from kd.registry.model_arguments import accept_both_names


def test_lookup_by_name_and_suggestions() -> None:
    assert kd.losses["kl"] is kd.losses.KL
    assert kd.models["resnet20"].__name__ == "resnet20"
    assert "kl" in kd.losses
    assert "resnet8x4" in list(kd.models)
    with pytest.raises(InputError, match="unknown model 'resnet9'; did you mean 'resnet8'"):
        kd.models["resnet9"]


def test_node_consists_of_the_signature_and_wrapper_keys() -> None:
    node = ConfigStore.instance().load("loss/kl.yaml").node
    assert OmegaConf.to_container(node) == {
        "_target_": "kd.losses.KL",
        "T": 4.0,
        "reduction": "batchmean",
        "unit": "nats",
        "standardise": False,
        "weight": 1.0,
        "student": "",
        "teacher": "",
        "warmup": 0,
        "start": 0,
        "stop": None,
    }
    with pytest.raises(ValidationError):
        node.T = "abc"


def test_arguments_supplied_by_kd_are_not_keys() -> None:
    node = ConfigStore.instance().load("student/resnet8.yaml").node
    assert set(node) == {"_target_", "checkpoint", "mean", "std", "size", "head", "freeze", "output", "checkpoint_key"}


def test_nested_containers_by_dotted_key() -> None:
    node = {"a": {"b": 1, "c": {}}, "d": [2], "e": {"f": {"g": None}}}
    assert nested.flatten(node) == {"a.b": 1, "a.c": {}, "d": [2], "e.f.g": None}
    assert nested.flatten(node, empty=False) == {"a.b": 1, "d": [2], "e.f.g": None}
    assert nested.flatten(3, "key") == {"key": 3}
    assert nested.flatten({}) == {"": {}}
    assert nested.get(node, "a.b") == 1
    assert nested.get(node, "a.b.c") is None
    assert nested.get(node, "x.y") is None
    assert nested.replaced(node, "a.b", 5) == {**node, "a": {"b": 5, "c": {}}}
    assert nested.replaced({"x": None}, "x.y.z", 1) == {"x": {"y": {"z": 1}}}
    assert node["a"] == {"b": 1, "c": {}}


def test_a_models_arguments_have_either_name() -> None:
    def net(num_classes: int, in_channels: int = 3, **options: Any) -> tuple[Any, ...]:
        return num_classes, in_channels, options

    make = accept_both_names(net)
    assert make(classes=5, channels=1, width=2) == make(5, 1, width=2) == (5, 1, {"width": 2})
    with pytest.raises(TypeError, match=r"net\(\) got both classes and num_classes"):
        make(classes=5, num_classes=5)
    with pytest.raises(TypeError, match="multiple values"):
        make(5, classes=5)
    with pytest.raises(TypeError, match=r"MLP\(\) got both shape and in_channels"):
        kd.models["mlp"](5, shape=(1, 8, 8), in_channels=1)
    assert make.__qualname__ == net.__qualname__
    assert inspect.signature(make) == inspect.signature(net)


def test_one_name_has_one_owner() -> None:
    registry = Registry("thing", {})

    @registry.register("a")
    def first() -> None: ...

    registry.register("a")(first)
    with pytest.raises(InputError, match="registered already"):

        @registry.register("a")
        def second() -> None: ...


class Free(nn.Module):
    """Anything."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        if size < 1:
            raise ValueError("size must be positive")

    def forward(self, student: Tensor) -> Tensor:
        return student.mean()


FREE = {"_target_": f"{__name__}.Free", "size": 2}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"size": 1}, "here has no _target_"),
        ({**FREE, "sise": 1}, "unknown option 'here.sise'; did you mean 'here.size'"),
        ({**FREE, "size": 0}, "here: size must be positive"),
        ({"_target_": "no.such.thing"}, "here"),
    ],
)
def test_bad_node_errors_name_their_path(node: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(node, "here")


def test_only_registered_targets_are_built_without_trust() -> None:
    assert isinstance(build(FREE, "here"), Free)
    with pytest.raises(InputError, match="not registered with kd"):
        build(FREE, "here", trust=False)
    with pytest.raises(InputError, match=r"here\.T names 'os\.system'"):
        build({"_target_": "kd.losses.logits.KL", "T": {"_target_": "os.system"}}, "here", trust=False)
    assert isinstance(build({"_target_": "kd.losses.logits.KL"}, "here", trust=False), kd.losses.KL)


def test_every_registered_class_has_a_summary_and_types() -> None:
    for name, entry in losses.items():
        assert entry.__doc__, name
        node = ConfigStore.instance().load(f"loss/{name}.yaml").node
        assert dataclasses.is_dataclass(OmegaConf.get_type(node)), name
