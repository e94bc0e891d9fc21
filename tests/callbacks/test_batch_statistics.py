"""Running statistics that converge in a short run, and the warning where validation stays at chance."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from command_runs import launched
from conftest import Run
from safetensors.torch import load_file
from torch import Tensor, nn

from kd import Arrays, Data, Distiller, Memory, Objective, Optim, Term
from kd.callbacks.batch_statistics import AtChance, BatchStatistics, least_momentum
from kd.losses.cross_entropy import CE


class Net(nn.Module):
    """Two layers behind a batch norm each, of a given momentum."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for width in (3, 8):
            blocks += [nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU()]
        self.body, self.fc = nn.Sequential(*blocks), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return self.fc(self.body(0.01 * images).mean((2, 3)))


def arrays(seed: int = 0, per_class: int = 80) -> tuple[Tensor, Tensor]:
    """Three classes by the brightest channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * per_class) % 3
    images = torch.randint(0, 60, (len(labels), 3, 6, 6), generator=generator)
    images[torch.arange(len(labels)), labels] += 120
    return images.to(torch.uint8), labels


def trained(
    momentum: float | None, *callbacks: pl.Callback, epochs: int = 4, val_labels: Tensor | None = None
) -> tuple[Distiller, dict[str, float]]:
    test = arrays(1, 50)
    if val_labels is not None:
        test = test[0], val_labels
    data = Data(Memory(Arrays(arrays(), test, ("a", "b", "c")), batch_size=24, val="test"))
    torch.manual_seed(0)
    optim = Optim(partial(torch.optim.Adam, lr=0.02))
    student = Distiller(Net(momentum), None, Objective({"ce": Term(CE())}), optim, data.shape, 3)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(student, datamodule=data)
    return student, {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("momentum", [0.01, 0.001, 0.1, None])
def test_running_statistics_converge_in_a_run_shorter_than_their_window(momentum: float | None) -> None:
    plain, before = trained(momentum)
    student, after = trained(momentum, BatchStatistics())
    assert before["train/acc"] == after["train/acc"] > 0.9
    assert after["val/acc"] > 0.9
    if momentum in (0.01, 0.001):
        assert before["val/acc"] < 0.6
    for (name, one), (_, other) in zip(plain.student.named_parameters(), student.student.named_parameters()):
        assert torch.equal(one, other), name
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [momentum] * 2


def test_a_run_with_enough_batches_before_its_first_validation_is_bit_identical() -> None:
    plain, before = trained(0.5)
    student, after = trained(0.5, BatchStatistics())
    assert before == after
    for one, other in zip(plain.student.state_dict().values(), student.student.state_dict().values()):
        assert torch.equal(one, other)


def test_statistics_fixed_by_the_user_do_not_change() -> None:
    student, _ = trained(0.0, BatchStatistics())
    for norm in student.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_mean.abs().max() == 0


def test_the_least_momentum_falls_in_powers_of_a_half() -> None:
    steps = (0, 8, 26, 62, 134, 278, 566, 10**6)
    assert [least_momentum(step) for step in steps] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 64]
    assert all(least_momentum(n) >= 9 / (10 + n) for n in range(567))


def test_warning_where_a_learning_student_validates_at_chance(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kd.callbacks.batch_statistics"):
        trained(0.001, AtChance())
    assert len(caplog.records) == 1
    assert "no better than chance" in caplog.text
    assert "running statistics" in caplog.text


def test_warning_for_wrong_validation_labels_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kd.callbacks.batch_statistics"):
        trained(0.1, BatchStatistics(), AtChance())
        assert not caplog.records
        trained(0.1, BatchStatistics(), AtChance(), val_labels=(arrays(1, 50)[1] + 1) % 3)
    assert "no better than chance" in caplog.text


def test_resumed_run_has_the_statistics_of_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ["student=resnet8", "logger=none"]
    strike = [f"+callbacks.saboteur.{key}" for key in ("_target_=saboteur.Saboteur", "moment=step", "epoch=1")]
    strike += [f"+callbacks.saboteur.{key}" for key in ("batch=2", "signum=15", "mark=mark")]
    whole = launched(tmp_path, *words, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert "update their running statistics faster" in whole.stdout + whole.stderr
    stopped = launched(tmp_path, *words, *strike, "hydra.run.dir=stopped")
    assert stopped.returncode == 143, stopped.stderr
    going = launched(tmp_path, "resume=stopped", "trust=true")
    assert going.returncode == 0, going.stderr
    states = [load_file(tmp_path / run / "student.safetensors") for run in ("whole", "stopped")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
def test_a_student_of_a_library_with_momentum_of_a_hundredth_is_far_above_chance(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*["student=torchvision", "student.name=mobilenet_v3_small", "teacher=resnet8", "hydra.run.dir=run"])
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["metrics"]["best"]["val/acc"] > 0.45
    assert summary["metrics"]["test"]["acc"] > 0.4
