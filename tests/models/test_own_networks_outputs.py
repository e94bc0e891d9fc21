"""Networks with state outside of their weights, and run folders whose network gives several tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain
from small_runs import trained
from torch import Tensor, nn

import kd
import kd.cli
from kd.errors import TrainingFailed
from kd.process.classify import classify
from kd.run_folder.from_run import network_of
from kd.run_folder.summary import read_summary
from kd.train.console import print_results

HERE = __name__
SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=60", "data.test=20"),
    *("data.batch_size=10", "epochs=1"),
)
ALONE = (*SMALL, "teacher=none", "objective=ce")


class Net(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(64, 16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.hidden(x.flatten(1)))


class DrawnAttribute(Net):
    """A random projection that is a plain attribute."""

    projection: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.randn(64, 64)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.flatten(1) @ self.projection)


class DrawnBuffer(Net):
    """A random projection that is a buffer, but is not kept."""

    projection: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(64, 64), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.flatten(1) @ self.projection)


class Counting(Net):
    """Measures its input in training, in a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = 0.0

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * float(x.detach().mean())
        return super().forward(x - self.mean)


class Kept(Net):
    """A random projection in the state dict, and a constant one outside of it."""

    projection: Tensor
    constant: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(64, 64))
        self.register_buffer("constant", torch.arange(64.0), persistent=False)
        self.steps = 0

    def forward(self, x: Tensor) -> Any:
        self.steps += self.training
        return super().forward((x.flatten(1) + self.constant) @ self.projection)


class RandomAnswer(Net):
    """Random in eval mode too, of which a warning tells."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(nn.functional.dropout(x, 0.5))


class Several(Net):
    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x.flatten(1))
        return {"hidden": hidden, "scores": self.fc(hidden)}


def student(name: str, at: str = "student") -> list[str]:
    return [f"~{at}", f"+{at}._target_={HERE}.{name}"]


@pytest.mark.parametrize("name", ["DrawnAttribute", "DrawnBuffer", "Counting"])
def test_network_with_state_outside_its_weights_is_refused(name: str, complain: Complain, tmp_path: Path) -> None:
    line = complain(*SMALL, *student(name), "teacher=cnn", "hydra.run.dir=run")
    assert f"student: {name} has other logits when it is rebuilt with the same weights" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["Kept", "RandomAnswer"])
def test_network_with_all_state_in_its_weights_or_random_is_trained(name: str, tmp_path: Path) -> None:
    kd.load(trained(tmp_path, *ALONE, *student(name)), trust=True)


def test_run_folder_as_teacher_brings_its_output_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = trained(tmp_path / "source", *ALONE, *student("Several"), "+student.output=scores")
    assert network_of(str(source), trust=True)["output"] == "scores"
    run = tmp_path / "run"
    words = (*SMALL, "student=cnn", f"teacher={source}", "trust=true", "teacher.min_accuracy=0", "logger=none")
    monkeypatch.setattr(sys, "argv", ["kd-train", *words, f"hydra.run.dir={run}"])
    kd.cli.train()
    assert read_summary(run)["teacher"]["output"] == "scores"


def test_summary_table_shows_whole_numbers_beside_long_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    part = {"val/acc": 0.7535, "teacher/acc": 0.993, "acc": 0.7632, "nll": 0.6922, "ece": 0.0512}
    about: dict[str, Any] = {"name": "[a]_mobilenet_v3_small_of_a_long_name", "parameters": 1_527_816}
    metrics = {"best": part, "last": part, "test": part | {"teacher_acc": 0.9833, "teacher_nll": 0.0688}}
    training = {"epochs": 1, "steps": 1, "seconds": 1.0, "images_per_s": 1.0}
    print_results(
        {"task": "train", "student": about, "teacher": about, "metrics": metrics, "training": training}, tmp_path
    )
    said = capsys.readouterr().out
    assert "…" not in said
    assert all(number in said for number in (about["name"], "1,527,816", "98.33 %", "0.0512"))


class Overflowing(Net):
    """Its logits are finite in training alone."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits if self.training or x.shape[0] <= 2 else logits * float("inf")


def test_nonfinite_logits_warn_in_validation_and_end_the_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        TrainingFailed, match=r"the student's logits are not finite for 20 test images: a lower optim\.lr"
    ):
        trained(tmp_path, *ALONE, *student("Overflowing"), "epochs=2")
    assert caplog.text.count("the student's logits on 6 validation images are not finite in eval mode") == 1


def test_an_auxiliary_head_without_a_gradient_on_two_processes_names_the_strategy() -> None:
    said = "It looks like your LightningModule has parameters that were not used in producing the loss returned by"
    code, line = classify(RuntimeError(f"{said} training_step. If this is intentional, ..."))
    assert (code, "trainer.strategy=ddp_find_unused_parameters_true" in str(line)) == (2, True)


class Auxiliary(Net):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x.flatten(1))
        return [self.aux(hidden), self.fc(hidden)] if self.training else self.fc(hidden)


@pytest.mark.parametrize(("output", "warned"), [(0, True), (1, False), (-1, False)])
def test_warning_where_eval_mode_lacks_the_chosen_output(
    output: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(tmp_path, *ALONE, *student("Auxiliary"), f"+student.output={output}")
    said = f"student.output={output} trains another head than eval mode returns, which is 1"
    assert (said in caplog.text) == warned
    assert read_summary(run)["student"]["output"] == output
