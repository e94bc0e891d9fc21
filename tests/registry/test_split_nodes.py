"""A configuration node is divided into keys of its target and keys of the wrapper."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain
from hydra.core.config_store import ConfigStore
from small_runs import trained
from torch import Tensor, nn

import kd
from kd.data.memory import Memory
from kd.distill.objective import Term
from kd.distill.spec import MemberSpec, TeacherSpec
from kd.distill.teacher_options import TeacherOptions
from kd.errors import InputError
from kd.models.weights import prepare
from kd.optim import Optim
from kd.registry import MISSING, defaults_of, losses, models, shadowed, split
from kd.train import assemble

HERE = __name__
NAMES = (
    *("size", "seed", "mean", "std", "data", "optim", "cache", "head", "freeze", "epochs", "outputs"),
    *("min_accuracy", "shuffle", "output", "checkpoint_key"),
)
SEEN: dict[str, Any] = {}


class Net(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def net(
    classes: int,
    channels: int,
    size: int = 0,
    seed: int = 0,
    mean: float = 0,
    std: float = 1,
    data: str = "",
    optim: str = "",
    cache: int = 0,
    head: str = "",
    freeze: bool = False,
    epochs: int = 0,
    outputs: int = 0,
    min_accuracy: float = 0,
    shuffle: bool = False,
    output: str = "",
    checkpoint_key: str = "",
) -> Net:
    SEEN.clear()
    SEEN.update({key: value for key, value in locals().items() if key in NAMES})
    return Net(classes, channels)


def bare(classes: int, channels: int) -> Net:
    return Net(classes, channels)


def anything(classes: int, channels: int, **options: Any) -> Net:
    SEEN.clear()
    SEEN.update(options)
    return Net(classes, channels)


def loader(classes: int, channels: int, checkpoint: str = "") -> Net:
    return Net(classes, channels)


half = functools.partial(net, size=5)


class Loss(nn.Module):
    """A loss whose own parameters have the names of a term's."""

    def __init__(self, weight: float = 1.0, student: str = "", warmup: int = 0, start: int = 0) -> None:
        super().__init__()
        self.options = (weight, student, warmup, start)

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(student, labels)


def sgd(parameters: Any, lr: float = 0.1, warmup: str = "", schedule: str = "mine") -> torch.optim.Optimizer:
    SEEN.clear()
    SEEN.update(warmup=warmup, schedule=schedule)
    return torch.optim.SGD(parameters, lr)


def arrays(val: str = "", batch_size: str = "") -> Any:
    from kd.data.batch import Arrays

    SEEN.clear()
    SEEN.update(val=val, batch_size=batch_size)
    images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    return Arrays(images, labels, images, labels, tuple("abcd"))


def node(target: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{target}", **options}


def test_parameter_named_by_the_target_is_passed_to_it() -> None:
    own, rest = split(node("net", size=4, seed=3, checkpoint="w"), "student", prepare)
    assert own == node("net", size=4, seed=3)
    assert rest == {"checkpoint": "w"}


@pytest.mark.parametrize("target", ["bare", "anything"])
def test_other_keys_go_to_the_wrapper(target: str) -> None:
    own, rest = split(node(target, size=4, seed=3), "teacher", prepare, TeacherOptions)
    assert (own, rest) == (node(target), {"size": 4, "seed": 3})


def test_a_partial_names_what_its_function_names() -> None:
    assert split(node("half", size=4), "student", prepare) == (node("half", size=4), {})


def test_a_class_names_what_its_constructor_names() -> None:
    own, rest = split(node("Loss", weight=2.0, stop=3), "objective.x", Term)
    assert (own, rest) == (node("Loss", weight=2.0), {"stop": 3})


def test_teacher_classes_option_is_not_passed_to_the_network() -> None:
    own, rest = split({"_target_": "kd.models.resnet.resnet8", "classes": [1, 0]}, "teacher", prepare, TeacherOptions)
    assert "classes" not in own
    assert rest == {"classes": [1, 0]}


def test_zoo_networks_are_divided_as_before() -> None:
    around = {*defaults_of(prepare), *defaults_of(TeacherOptions)}
    for name in models:
        target = f"{models[name].__module__}.{models[name].__qualname__}"
        assert shadowed({"_target_": target, **dict.fromkeys(around)}, "teacher", prepare, TeacherOptions) == [], name


def test_missing_or_unknown_target_gives_a_one_line_error() -> None:
    with pytest.raises(InputError, match="student has no _target_: set it to the dotted path"):
        split({"size": 4}, "student", prepare)
    with pytest.raises(InputError, match=r"student: _target_=no\.such.thing cannot be imported"):
        split({"_target_": "no.such.thing"}, "student", prepare)


def synthetic() -> Any:
    source = {"_target_": "kd.data.sources.synthetic", "shape": [1, 8, 8], "classes": 4, "train": 60, "test": 20}
    return assemble.data({"data": {**source, "batch_size": 10}, "seed": 0})


VALUES = dict.fromkeys(NAMES, 3)


def test_parameters_with_names_used_by_kd_reach_the_network() -> None:
    network = assemble.network(node("net", **VALUES), "student", synthetic())
    assert SEEN == VALUES
    assert (network.size, network.output, network.trained) == (None, None, None)
    SEEN.clear()
    teacher = assemble.teacher({"teacher": node("net", **VALUES)}, synthetic(), weights=False)
    assert SEEN == VALUES
    assert teacher is not None
    assert teacher.network.size is None
    assert MemberSpec("", "teacher", node("net", **VALUES)).options() == {}
    assert TeacherSpec.parse(node("net", **VALUES)).min_accuracies() == {"": None}


def test_a_student_s_options_for_a_function_that_takes_any_reach_it() -> None:
    assemble.network(node("anything", seed=3, depth=2, size=8), "student", synthetic())
    assert SEEN == {"seed": 3, "depth": 2}  # size is kd's, and no teacher is meant


def test_a_teacher_s_function_with_a_parameter_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match=r"teacher: .*loader has a parameter `checkpoint`"):
        assemble.teacher({"teacher": node("loader")}, synthetic(), weights=False)


def test_a_loss_s_own_weight_and_warmup_reach_it() -> None:
    terms = assemble.objective({"mine": node("Loss", weight=3.0, student="x", warmup=2, start=1, stop=5)})
    ((_, term),) = terms.named_terms()
    assert term.loss.options == (3.0, "x", 2, 1)
    assert (term.weight, term.sources["student"], term.warmup, term.start, term.stop) == (1.0, "", 0, 0, 5)


def test_an_optimiser_s_own_schedule_and_warmup_reach_it() -> None:
    optim = assemble.optim(node("sgd", schedule="steps", warmup="slow", gamma=0.5))
    assert SEEN == {"schedule": "steps", "warmup": "slow"}
    assert (optim.schedule, optim.gamma) == ("cosine", 0.5)


def test_a_data_source_s_own_val_and_batch_size_reach_it() -> None:
    own, rest = split(node("arrays", val="v", batch_size="b", flip=True), "data", Memory)
    assert (own, rest) == (node("arrays", val="v", batch_size="b"), {"flip": True})


def test_a_registered_entry_s_default_wins_over_that_of_what_goes_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (models, losses):  # what is registered here is gone at the end
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @kd.models.register("net_with_a_size")
    def net_with_a_size(classes: int, size: int = 7) -> nn.Module: ...

    @kd.losses.register("loss_with_a_weight")
    class LossWithAWeight(Loss):
        def __init__(self, weight: float = 9.0) -> None:
            super().__init__(weight)

    load = ConfigStore.instance().load
    assert load("student/net_with_a_size.yaml").node.size == 7
    assert load("teacher/net_with_a_size.yaml").node.size == 7
    assert load("loss/loss_with_a_weight.yaml").node.weight == 9.0
    assert MISSING not in load("teacher/net_with_a_size.yaml").node.values()


def test_name_clash_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=60", "data.test=20", "epochs=1")
    own = ("~student", f"+student._target_={HERE}.net", "+student.size=4", "+student.seed=3")
    with caplog.at_level("INFO"):
        run = trained(tmp_path, *small, "data.batch_size=10", *own, "teacher=none", "objective=ce")
    assert SEEN["size"] == 4
    assert f"student: size is {HERE}.net's own parameter, not kd's" in caplog.text
    student = kd.load(run, trust=True)
    assert (SEEN["size"], SEEN["seed"]) == (4, 3)  # also when it is read back
    assert student.size is None


def test_an_imported_network_is_called_by_its_function_s_name() -> None:
    from kd.models.names import name_of

    assert name_of({"_target_": "kd.models.hub.import_path", "path": "pkg.nets:small"}) == "small"
    assert name_of({"_target_": "kd.models.hub.timm", "name": "resnet10t"}) == "resnet10t"
    assert name_of({"_target_": "kd.models.resnet.resnet8"}) == "resnet8"
    assert name_of({"_target_": "mine.nets.make"}) == "make"


def test_an_unknown_option_of_a_student_is_named(complain: Complain) -> None:
    line = complain("student=resnet8", "+student.epochs=3", "teacher=none", "objective=ce")
    assert "student.epochs" in line or "epochs" in line


def test_the_optimiser_s_node_is_divided_as_the_others() -> None:
    own, rest = split({"_target_": "kd.optim.sgd", "lr": 0.1, "warmup": 0.2}, "optim", Optim)
    assert (own, rest) == ({"_target_": "kd.optim.sgd", "lr": 0.1}, {"warmup": 0.2})
