"""Networks of the user: a run trains any that it can, and a one-line error says what to change for the others."""

from __future__ import annotations

import logging
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Complain
from small_runs import trained
from torch import Tensor, nn

import kd
from kd.errors import InputError
from kd.models.check import explained, untouched
from kd.models.cost import size_of
from kd.models.inference import takes_channels_last
from kd.models.normalized import Normalized
from kd.models.outputs import logits_of
from kd.run_folder.summary import read_summary
from kd.train import assemble

HERE = __name__
SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=60", "data.test=20"),
    *("data.batch_size=10", "epochs=1"),
)
ALONE = (*SMALL, "teacher=none", "objective=ce")


class Net(nn.Module):
    """A convolution, a batch norm and a classifier."""

    def __init__(self, classes: int = 4, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def maps(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.maps(x).mean((2, 3)))


Named = namedtuple("Named", ("logits", "features"))


@dataclass
class Fields:
    scores: Tensor
    features: Tensor


FORMS: dict[str, Any] = {
    "map": lambda y, f: y[:, :, None, None],
    "tuple": lambda y, f: (f, y),
    "list": lambda y, f: [f, y],
    "pair": lambda y, f: {"a": y, "b": -y},
    "logits": lambda y, f: {"logits": y, "hidden": f},
    "named": lambda y, f: Named(y, f),
    "fields": lambda y, f: Fields(y, f),
    "single": lambda y, f: (y,),
    "nested": lambda y, f: (f, (y, f)),
    "maps": lambda y, f: {"out": y[:, :, None, None], "aux": f},
}


class Forms(Net):
    def __init__(self, classes: int, channels: int, form: str) -> None:
        super().__init__(classes, channels)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        features = self.maps(x).mean((2, 3))
        return FORMS[self.form](self.fc(features), features)


class Aux(Net):
    """Two heads in training, the main one anywhere among them, one in eval mode."""

    def __init__(self, classes: int, channels: int, first: bool = False) -> None:
        super().__init__(classes, channels)
        self.aux, self.drop, self.first = nn.Linear(8, classes), nn.Dropout(0.5), first

    def forward(self, x: Tensor) -> Any:
        features = self.maps(x).mean((2, 3))
        main = self.fc(self.drop(features))
        if not self.training:
            return main
        return (self.aux(features), main) if self.first else (main, self.aux(features))


class View(Net):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        return self.fc(maps.view(maps.shape[0], -1))


class Softmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)


class LogSoftmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(-1)


class Random(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x))


class Squeezing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Second(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x)


class Keyword(Net):
    def forward(self, *, pixels: Tensor) -> Tensor:
        return super().forward(pixels)


class Fixed(Net):
    """Takes 64 pixels only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 64:
            raise RuntimeError(f"expected 64 pixels, got {x.shape[-1]}")
        return super().forward(x)


class Tied(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64 * channels, 64 * channels), nn.Linear(64 * channels, 64 * channels)
        self.two.weight = self.one.weight
        self.fc = nn.Linear(64 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(x.flatten(1))))


class Complex(Net):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.turn = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.maps(x).mean((2, 3)) * self.turn).real)


class Buffers(Net):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("bias", torch.tensor([0.0, float("-inf")]))


class Seeding(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().forward(x)


class Device(Net):
    @property
    def device(self) -> torch.device:
        return self.fc.weight.device


class Uncounted(Net):
    def forward(self, x: Tensor) -> Tensor:
        from torch.utils._python_dispatch import _get_current_dispatch_mode

        if _get_current_dispatch_mode() is not None:
            raise RuntimeError("no modes here")
        return super().forward(x)


class Uncopied(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("a handle cannot be copied")


def make(classes: int, channels: int, kind: str) -> nn.Module:
    return {  # type: ignore[no-any-return]
        **{cls.__name__: lambda cls=cls: cls(classes, channels) for cls in OWN},
        "half": lambda: Net(classes, channels).half(),
        "double": lambda: Net(classes, channels).double(),
        "bfloat16": lambda: Net(classes, channels).bfloat16(),
        "lazy": lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(classes)),
        "compiled": lambda: torch.compile(Net(classes, channels)),
        "parallel": lambda: nn.DataParallel(Net(classes, channels)),
        "scripted": lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes))),
        "weight norm": lambda: normed(Net(classes, channels), torch.nn.utils.parametrizations.weight_norm),
        "old weight norm": lambda: normed(Net(classes, channels), torch.nn.utils.weight_norm),
        "transposed": lambda: transposed(Net(classes, channels)),
        "frozen": lambda: Net(classes, channels).requires_grad_(False),
        "no parameters": lambda: nn.Flatten(),
        "blind": lambda: Net(classes, 3),
    }[kind]()


OWN = (
    *(Aux, View, Softmax, LogSoftmax, Random, Squeezing, Second, Keyword, Fixed, Tied, Complex, Buffers, Seeding),
    *(Device, Uncounted, Uncopied),
)


def normed(network: Net, norm: Any) -> Net:
    network.fc = norm(network.fc)
    return network


def transposed(network: Net) -> Net:
    network.fc.weight = nn.Parameter(torch.randn(8, 4).t())
    return network


def student(target: str, side: str = "student", **options: Any) -> list[str]:
    words = [f"~{side}", f"+{side}._target_={HERE}.{target}"]
    return [*words, *(f"+{side}.{key}={value}" for key, value in options.items())]


def data() -> Any:
    source = {"_target_": "kd.data.sources.synthetic", "shape": [1, 8, 8], "classes": 4, "train": 60, "test": 20}
    return assemble.data({"data": {**source, "batch_size": 10}, "seed": 0})


# --- outputs


@pytest.mark.parametrize(
    ("form", "output"),
    [
        *(("map", None), ("logits", None), ("named", None), ("single", None), ("tuple", 1), ("tuple", -1)),
        *(("list", "1"), ("pair", "b"), ("fields", "scores"), ("nested", "1.0"), ("maps", "out"), ("named", 0)),
        ("logits", "hidden"),
    ],
)
def test_logits_are_selected_by_key_attribute_or_position(form: str, output: Any) -> None:
    y, f = torch.rand(2, 4), torch.rand(2, 8)
    wanted = {"b": -y, "hidden": f}.get(output, y) if isinstance(output, str) else y
    assert torch.equal(logits_of(FORMS[form](y, f), output), wanted)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("tuple", "the network returns tuple(0 [2, 8], 1 [2, 4]); which are the logits? set student.output=1"),
        ("pair", "which are the logits? set student.output=a (available: a, b)"),
        ("fields", "Fields(scores [2, 4], features [2, 8]); which are the logits? set student.output=scores"),
        ("nested", "which are the logits? set student.output=1.0 (available: 0, 1.0, 1.1)"),
    ],
)
def test_ambiguous_output_needs_an_option(form: str, said: str, complain: Complain) -> None:
    line = complain(*ALONE, *student("Forms", form=form))
    assert line.startswith("error: student: ")
    assert said in line


@pytest.mark.parametrize(
    ("output", "said"), [("c", "output=c is not in what the network returns: dict(a"), (7, "output=7")]
)
def test_missing_output_is_named(output: Any, said: str, complain: Complain) -> None:
    assert said in complain(*ALONE, *student("Forms", form="pair", output=output))


def test_chosen_output_is_saved_and_exported(tmp_path: Path) -> None:
    from kd.evaluate import evaluate
    from kd.export import export

    run = trained(tmp_path, *ALONE, *student("Forms", form="pair", output="b"))
    summary = read_summary(run)
    assert summary["student"]["output"] == "b"
    images = torch.rand(3, 1, 8, 8)
    network = kd.load(run, trust=True)
    with torch.no_grad():
        assert torch.equal(network(images), network.net(network.pixels(images))["b"])
        single = network(images[:1])
    found = evaluate(str(run), trust=True)
    assert found["metrics"]["acc"] == pytest.approx(summary["metrics"]["test"]["acc"], abs=1e-6)
    export(str(run), format="torchscript", trust=True, out=str(tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("*.pt")
    torch.testing.assert_close(torch.jit.load(file)(images)[:1], single)


def test_a_teacher_s_output_is_chosen_and_reaches_the_run_that_trains_it(tmp_path: Path) -> None:
    words = student("Forms", "teacher", form="tuple", output=1, min_accuracy=0)
    run = trained(tmp_path, *SMALL, "student=cnn", *words)
    assert read_summary(run)["teacher"]["output"] == 1
    (teacher,) = (tmp_path / "teachers").iterdir()
    assert read_summary(teacher)["student"]["output"] == 1


@pytest.mark.parametrize("first", [True, False])
def test_main_output_among_auxiliary_heads_is_the_one_of_eval_mode(
    first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        network = assemble.network({"_target_": f"{HERE}.Aux", "first": first}, "student", data())
    assert network.output == ("1" if first else "0")
    assert f"student.output={network.output} is used" in caplog.text
    network.train()
    network.net.drop.eval()
    network.net.bn.eval()
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(network(images), network.eval()(images))


def test_an_auxiliary_head_may_be_tapped(tmp_path: Path) -> None:
    term = ("+objective.aux._target_=kd.losses.hard.CE", "+objective.aux.student=aux", "+objective.aux.weight=0.3")
    run = trained(tmp_path, *ALONE, *student("Aux"), *term)
    assert "aux" in str(read_summary(run)["objective"]["terms"])


@pytest.mark.parametrize("name", ["googlenet", "mnasnet0_5"])
def test_library_network_trains_and_reloads(name: str, tmp_path: Path) -> None:
    words = (*ALONE[:1], "data.shape=[3,32,32]", "data.classes=4", "data.train=24", "data.test=8", "data.batch_size=4")
    run = trained(
        tmp_path, *words, "epochs=1", "optim.lr=0.001", *ALONE[-2:], "student=torchvision", f"student.name={name}"
    )
    assert kd.load(run)(torch.rand(2, 3, 32, 32)).shape == (2, 4)


# --- sizes, channels, layouts


@pytest.mark.parametrize(("name", "size"), [("alexnet", 224), ("inception_v3", 299)])
def test_a_network_of_a_fixed_size_names_the_option(name: str, size: int) -> None:
    node = {"_target_": "kd.models.hub.torchvision", "name": name}
    images = assemble.data({"data": {"_target_": "kd.data.sources.synthetic", "shape": [3, 32, 32]}, "seed": 0})
    with pytest.raises(InputError, match=rf"{name} does not take images \[3, 32, 32\] .*: set teacher.size={size}$"):
        assemble.network(node, "teacher", images)


def test_custom_network_of_a_fixed_size_names_the_option(complain: Complain) -> None:
    line = complain(*ALONE, *student("make", kind="Fixed"))
    assert line.startswith(
        "error: student: make does not take images [1, 8, 8] (RuntimeError: expected 64 pixels, got 8)"
    )
    assert line.endswith("it accepts 64 pixels: set student.size=64")


def test_network_with_wrong_channels_gives_a_one_line_error(complain: Complain) -> None:
    line = complain(*ALONE, "student=import", f"student.path={HERE}:blind")
    assert line.startswith(f"error: student: {HERE}:blind does not take images [1, 8, 8] (RuntimeError: Given groups=1")
    assert "it accepts 3 channels: give its function a parameter `channels`, which kd sets" in line


def blind() -> nn.Module:
    return Net(4, 3)


def test_a_network_that_views_its_maps_runs_in_plain_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        words = student("View", "teacher", min_accuracy=0)
        trained(tmp_path, *SMALL, *student("View"), *words, "teacher.min_accuracy=0", "speed.channels_last=true")
    assert "student: kept in the default layout, as it does not run in channels-last" in caplog.text
    assert "teacher: kept in the default layout, as it does not run in channels-last" in caplog.text


def test_trying_a_memory_layout_does_not_change_the_network() -> None:
    for network, fits in ((View(4, 1), False), (Net(4, 1), True)):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        assert takes_channels_last(network, torch.rand(2, 1, 8, 8), trains=True) is fits
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert network.conv.weight.is_contiguous()


# --- what is handled, and what is one line


@pytest.mark.parametrize(
    "kind",
    [
        *("half", "double", "bfloat16", "lazy", "compiled", "parallel", "scripted", "weight norm", "old weight norm"),
        *("transposed", "Tied", "Complex", "Buffers", "Seeding", "Device", "Uncounted", "LogSoftmax"),
    ],
)
def test_unusual_network_trains_and_reloads(kind: str, tmp_path: Path) -> None:
    run = trained(tmp_path, *ALONE, *student("make", kind=f"'{kind}'"))
    assert kd.load(run, trust=True)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 4)


@pytest.mark.parametrize("kind", ["old weight norm", "Uncopied", "scripted", "Tied", "compiled"])
def test_an_unusual_network_is_a_teacher(kind: str, tmp_path: Path) -> None:
    words = student("make", "teacher", kind=f"'{kind}'", min_accuracy=0)
    assert read_summary(trained(tmp_path, *SMALL, "student=cnn", *words))["teacher"]["parameters"]


def test_other_precision_becomes_float32_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        network = assemble.network({"_target_": f"{HERE}.make", "kind": "half"}, "student", data())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert "student: parameters in torch.float16 are converted to float32" in caplog.text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("frozen", "make has nothing to train: all parameters are frozen (requires_grad=False)"),
        ("'no parameters'", "make has nothing to train: there are no parameters"),
        ("Second", "missing 1 required positional argument: 'mask'); kd calls it with the images only"),
        ("Keyword", "kd calls it with the images only: give other parameters defaults, or wrap it"),
        ("Squeezing", "returns [2, 4] for two images, [4] for one: keep the batch dimension"),
    ],
)
def test_unusable_network_gives_a_one_line_error(kind: str, said: str, complain: Complain) -> None:
    words = ("data.classes=64",) if kind == "'no parameters'" else ()
    assert said in complain(*ALONE, *words, *student("make", kind=kind))


def test_batch_norms_that_see_one_image_of_one_pixel_name_the_batch_size() -> None:
    network = Normalized(nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten()), [0.5], [0.5])
    said = r"batch norms need more or larger images: increase data\.batch_size"
    with pytest.raises(InputError, match=said), explained(network, "student", "mine", [1, 8, 8], 4):
        network.train()(torch.rand(1, 1, 8, 8))


def test_warning_for_probabilities_instead_of_logits(caplog: pytest.LogCaptureFixture) -> None:
    for kind, warned in (("Softmax", True), ("LogSoftmax", False), ("Tied", False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assemble.network({"_target_": f"{HERE}.make", "kind": kind}, "student", data())
        assert ("make returns probabilities, not logits" in caplog.text) is warned, kind


@pytest.mark.parametrize(
    "words", [(), ("speed.fold=false",), ("speed=plain", "+teacher.cache=off")], ids=["default", "unfolded", "plain"]
)
def test_teacher_random_in_eval_mode_is_refused_with_a_remedy(words: tuple[str, ...], complain: Complain) -> None:
    line = complain(*SMALL, "student=cnn", *student("make", "teacher", kind="Random"), *words)
    assert "returns different logits for the same images on each call, even in eval mode" in line
    assert "F.dropout without training=self.training" in line
    assert "speed." not in line


def test_warning_for_a_student_random_in_eval_mode(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assemble.network({"_target_": f"{HERE}.make", "kind": "Random"}, "student", data())
    assert "so validation is not repeatable" in caplog.text


def test_operations_that_torch_cannot_count_are_counted_by_layers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        uncounted = size_of(Uncounted(4, 1), [1, 8, 8])
    assert uncounted == size_of(Net(4, 1), [1, 8, 8])
    assert "MACs: only of convolution and linear layers" in caplog.text
    assert size_of(nn.Flatten(), [1, 8, 8]) == {"parameters": 0, "macs": 0}


def test_trial_restores_buffers_modes_and_random_state() -> None:
    network = Net(4, 1)
    network.bn.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with untouched(network):
        network.train()(torch.rand(8, 1, 8, 8))
    assert torch.equal(torch.rand(3), expected)
    assert (network.training, network.bn.training) == (True, False)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
