"""BYOT: its formula, which head teaches which, and a saved student without heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from trained import trained

import kd
from kd import InputError, Taps
from kd.losses import BYOT


def layers(student: str = "resnet8", classes: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = kd.models[student](classes=classes, channels=1)
    names = ["stage1", "stage2", "last"]
    tapped = Taps(network, names)(torch.rand(6, 1, 16, 16))
    return [tapped[name].detach().requires_grad_(True) for name in [*names, ""]]


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def test_it_is_the_sum_over_heads_of_labels_divergence_and_hint() -> None:
    given = layers()
    loss = BYOT(alpha=0.4, T=2.0, hint=0.1)
    loss.build(given)
    loss.eval()
    expected = torch.zeros(())
    for branch, features in zip(loss.branches, given):
        seen, logits = branch(features)
        divergence = F.kl_div((logits / 2).log_softmax(1), (given[-1] / 2).softmax(1), reduction="batchmean")
        distance = (seen - given[-2].mean((2, 3))).square().sum().sqrt()
        expected = expected + 0.6 * F.cross_entropy(logits, LABELS) + 0.4 * 4 * divergence + 0.1 * distance
    assert len(loss.branches) == 2
    torch.testing.assert_close(loss(given, LABELS), expected)


def test_output_is_teacher_and_gets_no_distillation_gradient() -> None:
    given = layers()
    loss = BYOT()
    loss.build(given)
    loss(given, LABELS).backward()
    assert [layer.grad is not None for layer in given] == [True, True, False, False]
    assert all(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize("student", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV1", "ResNet18", "cnn"])
def test_heads_fit_every_convolutional_network(student: str) -> None:
    given = layers(student) if student != "cnn" else layers(student)[:1] + layers(student)[2:]
    loss = BYOT()
    loss.build(given)
    for branch, features in zip(loss.branches, given):
        seen, logits = branch(features)
        assert seen.shape == (6, given[-2].shape[1])
        assert logits.shape == (6, 5)


def test_unlabelled_and_mixed_samples_learn_from_the_output() -> None:
    given = layers()
    loss = BYOT(hint=0.0)
    loss.build(given)
    loss.eval()
    none = loss(given, torch.full((6,), -1))
    mixed = loss(given, F.one_hot(LABELS, 5).float())
    assert none > 0
    torch.testing.assert_close(mixed, loss(given, LABELS))


def test_unsupported_layers_are_refused() -> None:
    with pytest.raises(InputError, match="student=\\[stage1, stage2, last"):
        BYOT().build(layers()[-2:])
    with pytest.raises(InputError, match="not token sequences"):
        BYOT().build([torch.rand(2, 4, 8), *layers()[-2:]])
    with pytest.raises(InputError, match="alpha must lie"):
        BYOT(alpha=2)


def test_saved_student_has_no_heads_and_summary_names_them(tmp_path: Path) -> None:
    small = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=200", "data.test=40", "epochs=2")
    run = trained(tmp_path, *small, "teacher=none", "student=resnet8", "objective=byot")
    assert set(load_file(run / "student.safetensors")) == set(kd.models["resnet8"](classes=4).state_dict())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher"] is None
    assert summary["objective"]["terms"][0] == "total = 1 * ce + 1 * byot"
    kept = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert any("byot.loss.branches.1" in key for key in kept)
