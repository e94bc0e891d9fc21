"""callbacks=ema: the moving average of the weights is validated, tested and saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor
from trained import trained

import kd
from kd import InputError
from kd.callbacks.ema import EMA, averaging
from kd.train import assemble

SMALL = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=300", "data.test=60", "epochs=3")
WORDS = (*SMALL, "teacher=none", "objective=ce", "student=cnn", "callbacks=ema", "callbacks.ema.decay=0.8")
SEEN: list[dict[str, Tensor]] = []


class Watch(pl.Callback):
    """Keeps the student's weights after every step."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        SEEN.append({key: value.clone() for key, value in pl_module.student.net.state_dict().items()})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    SEEN.clear()
    return trained(tmp_path_factory.mktemp("ema"), *WORDS, "+callbacks.watch._target_=test_averaging.Watch")


def by_hand(steps: int, decay: float) -> dict[str, Tensor]:
    average = SEEN[0]
    for n in range(1, steps):
        d = min(decay, (1 + n) / (10 + n))
        floats = {key: d * old + (1 - d) * SEEN[n][key] for key, old in average.items() if old.is_floating_point()}
        average = {**SEEN[n], **floats}
    return average


def test_the_average_is_that_of_its_formula(run: Path) -> None:
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(SEEN) == last["global_step"]
    for key, value in by_hand(len(SEEN), 0.8).items():
        torch.testing.assert_close(last["state_dict"][f"student.net.{key}"], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(last["current_model_state"][f"student.net.{key}"], SEEN[-1][key])


def test_validation_test_and_saved_student_use_the_average(run: Path) -> None:
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    left = load_file(run / "student.safetensors")
    assert all(torch.equal(left[key], best[f"student.net.{key}"]) for key in left)
    summary = json.loads((run / "summary.json").read_text())
    data = assemble.data({"data": summary["data"]["config"], "seed": summary["seed"]})
    student = kd.load(run)
    for part, recorded in (("val", summary["metrics"]["best"]["val/acc"]), ("test", summary["metrics"]["test"]["acc"])):
        images, labels = data.memory.parts[part]
        with torch.no_grad():
            assert float((student(images).argmax(1) == labels).float().mean()) == pytest.approx(recorded)
    with torch.no_grad():
        answers = student(data.memory.parts["test"][0])
    torch.testing.assert_close(
        load_file(run / "predictions.safetensors")["student"].float(), answers, rtol=1e-2, atol=1e-2
    )


def test_the_rule_for_one_tensor() -> None:
    rule = averaging(0.9)
    ones, zeros = torch.ones(3), torch.zeros(3)
    torch.testing.assert_close(rule(ones, zeros, torch.tensor(1)), torch.full((3,), 2 / 11))
    torch.testing.assert_close(rule(ones, zeros, torch.tensor(10_000)), torch.full((3,), 0.9))
    assert int(rule(torch.tensor(3), torch.tensor(7), torch.tensor(1))) == 7
    with pytest.raises(InputError, match="decay must lie in"):
        EMA(1.0)
