"""Odd objectives, networks and callbacks: the right figures, or one line that says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain
from torch import Tensor, nn

import kd
from kd.metrics import Scores
from kd.run import read_summary

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
        ("callbacks.best.monitor=1", "=1 must be a word or null"),
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
