"""Odd objectives, networks and callbacks: the right figures, or one line that says what to change."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain, Run
from paths import ROOT
from small_runs import trained
from torch import Tensor, nn

import kd
from kd.distill.metrics import Scores
from kd.losses import KL, ReverseKL
from kd.run_folder.summary import read_summary

HERE = __name__
SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=60", "data.test=20"),
    *("data.batch_size=10", "epochs=1", "trainer.enable_progress_bar=false"),
)
ALONE = (*SMALL, "teacher=none", "objective=ce")


class Sparse(nn.Module):
    """One image of a batch of more than ten, as the test part's are, has no finite logits."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64 * channels, classes)

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(x.flatten(1))
        return logits if self.training or len(x) <= 10 else logits.index_fill(0, x.new_tensor([3]).long(), float("nan"))


def test_a_test_image_without_finite_logits_ends_the_run_in_one_line_and_the_student_is_kept(
    complain: Complain, tmp_path: Path
) -> None:
    line = complain(*ALONE, "student=import", f"student.path={HERE}:Sparse", "hydra.run.dir=run", code=3)
    assert line.startswith("error: the student's logits are not finite for 1 test images")
    metrics = read_summary(tmp_path / "run")["metrics"]
    assert metrics["test"] is None
    assert metrics["untested"].startswith("the student's logits are not finite for 1 test images")
    assert (tmp_path / "run" / "student.safetensors").is_file()


def test_scores_count_logits_of_both_sides_that_are_not_finite_once() -> None:
    scores = Scores(3, with_teacher=True)
    logits = torch.randn(4, 3)
    student, teacher = logits.clone(), logits.clone()
    student[1, 2], teacher[:2] = float("nan"), float("inf")
    scores.update(student, torch.tensor([0, 1, 2, 0]), teacher)
    assert scores.not_finite() == {"student": 1, "teacher": 2}
    scores.update(logits, torch.tensor([0, 1, 2, 0]), teacher)
    with pytest.raises(kd.errors.TrainingFailed, match="the teacher's logits are not finite for 2 test images"):
        scores.check_finite("test")
    scores.check_finite("test")


def keywords_alone(**given: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, given["num_classes"]))


ready = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
READY = f"{HERE}{{}}ready is a Sequential itself: name the class, or a function that makes one"
KEYWORDS = f"{HERE}{{}}keywords_alone looks for 'num_classes' among its ** arguments"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("student=import", f"student.path={HERE}:ready"), "error: student: " + READY.format(":")),
        (
            (f"student._target_={HERE}.ready",),
            "error: student: " + READY.format("."),
        ),
        ((f"+objective.mine._target_={HERE}.ready",), "error: objective.mine: " + READY.format(".")),
        (("student=import", f"student.path={HERE}:keywords_alone"), "error: student: " + KEYWORDS.format(":")),
        (
            (f"student._target_={HERE}.keywords_alone",),
            "error: student: " + KEYWORDS.format("."),
        ),
    ],
)
def test_a_finished_network_or_a_function_of_keywords_alone_is_one_line(
    words: tuple[str, ...], said: str, complain: Complain
) -> None:
    assert complain(*ALONE, *words).startswith(said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+callbacks.best.train_time_interval=1", "=1 must be null or {_target_: datetime.timedelta, minutes: 10}"),
        ("callbacks.best.monitor=[val/acc]", "=['val/acc']: unknown metric \"['val/acc']\"; did you mean 'val/acc'?"),
        ("callbacks.best.monitor=1", "=1 must be a string or null"),
        ("+callbacks.best.save_on_train_epoch_end=abc", "=abc must be true or false or null"),
        ("+callbacks.best.save_top_k=abc", "=abc must be a whole number"),
        ("callbacks.last.minutes=abc", "=abc must be a number or null"),
        ("callbacks.pictures.images=many", "=many must be a whole number"),
    ],
)
def test_an_option_of_a_callback_of_another_type_is_one_line(word: str, said: str, complain: Complain) -> None:
    assert complain(*ALONE, word).startswith(f"error: {word.lstrip('+').partition('=')[0]}{said}")


def test_the_patience_of_an_early_stop_must_be_a_number(complain: Complain) -> None:
    stop = "+callbacks.stop={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/acc, patience: abc}"
    assert complain(*ALONE, stop) == "error: callbacks.stop.patience=abc must be a whole number"


@pytest.mark.parametrize("loss", [KL, ReverseKL])
@pytest.mark.parametrize("T", [1e3, 1e4, 1e6])
def test_kl_at_a_high_temperature_is_not_lost_in_rounding(loss: type[nn.Module], T: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(64, 10, generator=generator) for _ in range(2))
    single, double = student.clone().requires_grad_(), student.double().requires_grad_()
    value, right = loss(T=T)(single, teacher), loss(T=T)(double, teacher.double())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(right.item(), rel=1e-4)
    value.backward()
    right.backward()
    assert single.grad is not None
    assert double.grad is not None
    assert single.grad.dtype == torch.float32
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-9)


def test_a_term_that_would_start_after_the_last_step_is_refused(complain: Complain) -> None:
    line = complain(*SMALL, "teacher=cnn", "epochs=4", "+trainer.max_steps=5", "objective.kd.start=2")
    assert line.startswith("error: objective.kd.start=2: trainer.max_steps=5 ends the run in epoch 0, counted from 0")


def test_a_term_that_starts_before_the_last_step_is_taken(tmp_path: Path) -> None:
    words = ("teacher=none", "objective=ce", "epochs=4", "+trainer.max_steps=11", "+loss@objective.late=ce")
    run = trained(tmp_path, *SMALL, *words, "objective.late.start=2")
    assert read_summary(run)["training"]["steps"] == 11


def test_a_stage_of_two_lengths_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ("student=resnet8", "teacher=resnet8", "teacher.min_accuracy=0", "teacher.epochs=1", "objective=ab")
    trained(tmp_path, *SMALL, *words, "epochs=4", "init_epochs=1", "optim.init=0.5")
    assert "optim.init=0.5 ends pre-training after 2 epochs, but" in caplog.text
    caplog.clear()
    trained(tmp_path / "again", *SMALL, *words, "epochs=4", "init_epochs=2", "optim.init=0.5")
    assert "optim.init=0.5 ends" not in caplog.text


@pytest.mark.parametrize(("logger", "said"), [("none", False), ("csv", False), ("tensorboard", True)])
def test_tensorboard_is_named_where_it_has_something_to_show(
    logger: str, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kd"):
        trained(tmp_path, *ALONE, f"logger={logger}")
    assert ("tensorboard --logdir" in caplog.text) == said


def test_readmes_own_network_runs_as_written(kd_train: Run, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("A **model** is any function") : text.index("A **folder** of images")]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))
    (tmp_path / "mine.py").write_text(blocks["python"])
    words = shlex.split(blocks["bash"], comments=True)
    quick = ("teacher=none", "objective=ce", "epochs=1", "trainer.limit_train_batches=1", "logger=none")
    done = kd_train(*words[1:], *quick)
    assert done.returncode == 0, done.stderr


def test_the_recipe_of_deit_decays_all_parameters_where_its_command_says_so() -> None:
    from test_configs import composed

    text = (ROOT / "docs" / "regimes.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("kd-compare experiment=fashion_mnist/deit")]
    assert lines
    assert all("optim.decay_norm_bias=true" in line for line in lines)
    assert composed("experiment=fashion_mnist/deit")["optim"]["decay_norm_bias"] is False
    assert composed("experiment=fashion_mnist/deit", "optim.decay_norm_bias=true")["optim"]["decay_norm_bias"] is True
