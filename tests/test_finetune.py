"""Students that start from a run: fine-tuning, a new classifier, and the linear probe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain
from safetensors.torch import load_file
from torch import nn
from trained import trained

import kd
from kd.models.hub import timm, torchvision
from kd.models.weights import classifier_names, prepare
from kd.report import write

SMALL = ("data=synthetic", "data.shape=[1,8,8]", "data.train=200", "data.test=40", "epochs=2", "teacher=none")
FOUR = (*SMALL, "data.classes=4", "objective=ce")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of resnet8 on four classes."""
    return trained(tmp_path_factory.mktemp("source"), *FOUR, "student=resnet8")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student.safetensors")


def differing(one: Path, other: Path) -> set[str]:
    before, after = weights(one), weights(other)
    assert set(before) == set(after)
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_a_linear_probe_changes_the_classifier_alone(source: Path, tmp_path: Path) -> None:
    probe = trained(tmp_path, *FOUR, "student=resnet8", f"student.checkpoint={source}", "student.freeze=backbone")
    assert differing(source, probe) == {"fc.weight", "fc.bias"}
    about = json.loads((probe / "summary.json").read_text())["student"]
    assert (about["checkpoint"], about["freeze"], about["head"]) == (str(source), "backbone", None)
    assert not {"checkpoint", "freeze", "head"} & set(about["config"])
    # what is left behind is an ordinary student, of which every layer may train
    assert all(p.requires_grad for p in kd.load(probe).parameters())
    assert not kd.load(probe).training


def test_a_new_classifier_for_other_classes(source: Path, tmp_path: Path) -> None:
    words = (*SMALL, "data.classes=7", "objective=ce", "student=resnet8", f"student.checkpoint={source}")
    probe = trained(tmp_path, *words, "student.head=new", "student.freeze=backbone")
    before, after = weights(source), weights(probe)
    assert after["fc.weight"].shape == (7, 64)
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith("fc."))
    assert kd.load(probe)(torch.zeros(1, 1, 8, 8)).shape == (1, 7)


def test_fine_tuning_starts_from_the_weights_and_changes_them_all(source: Path, tmp_path: Path) -> None:
    words = ("student=resnet8", f"student.checkpoint={source / 'checkpoints' / 'best.ckpt'}", "optim.lr=1e-9")
    still = trained(tmp_path / "still", *FOUR, *words, "optim.weight_decay=0", "trainer.limit_train_batches=1")
    for key, value in weights(source).items():
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(weights(still)[key], value, rtol=1e-5, atol=1e-6)
    tuned = trained(tmp_path / "tuned", *FOUR, *words[:2])
    assert differing(source, tuned) == set(weights(source))


def test_report_lists_fine_tuned_students_beside_scratch(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "runs" / "scratch")
    start = ("student=resnet8", f"student.checkpoint={source}")
    for name, words in (("tuned", ()), ("probe", ("student.freeze=backbone",))):
        trained(tmp_path / "runs" / name, *FOUR, *start, *words)
    table = write(tmp_path / "runs", tmp_path / "runs").markdown()
    for label in ("scratch", "fine-tuned", "probe"):
        assert f"| {label}" in table, table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.freeze=all"], "student: unknown freeze 'all'"),
        (["student.head=old"], "student: unknown head 'old'"),
        (["student.checkpoint=nowhere"], "no weights at nowhere"),
        (["student=resnet20", "student.checkpoint=RUN"], "does not fit"),
        (["data.classes=7", "student=resnet8", "student.checkpoint=RUN"], "of another shape, first fc.weight"),
    ],
)
def test_mismatched_starting_weights_give_a_one_line_error(
    words: list[str], said: str, source: Path, complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in complain(*SMALL, "objective=ce", "data.classes=4", *(w.replace("RUN", str(source)) for w in words))


NETWORKS: dict[str, tuple[Any, list[str]]] = {
    "zoo": (lambda: kd.models["wrn_16_1"](classes=3), ["fc"]),
    "two heads": (lambda: kd.models["deit_tiny"](classes=3, shape=[3, 8, 8]), ["head", "head_dist"]),
    "torchvision": (lambda: torchvision("mobilenet_v3_small", 3), ["classifier.3"]),
    "timm": (lambda: timm("resnet10t", 3), ["fc"]),
    "own": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), ["3"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_linear_probe_of_every_network_trains_only_the_classifier(name: str) -> None:
    make, heads = NETWORKS[name]
    network = make()
    assert classifier_names(network) == heads
    student = prepare(network, [0.5] * 3, [0.5] * 3, freeze="backbone").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1.0)
    student(torch.rand(4, 3, 8, 8) if name != "timm" else torch.rand(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
