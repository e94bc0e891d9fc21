"""When terms apply, when the teacher runs, and the checks of each term before training."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Complain, Run
from torch import Tensor, nn

import kd
from kd import Arrays, Batch, Data, Distiller, Frozen, Memory, Normalized, Objective, Optim, Term
from kd.distill.dot import DOTDistiller
from kd.distill.term_check import check_terms
from kd.errors import InputError
from kd.losses.cross_entropy import CE, Entropy
from kd.losses.dist import DIST
from kd.losses.divergences import JS, KL, TV
from kd.losses.dkd import DKD
from kd.losses.mlkd import MLKD
from kd.losses.nkd import NKD
from kd.models.activation_checkpointing import recompute
from kd.optim import DOT

SYN = ["data=synthetic", "data.shape=[1,8,8]", "data.classes=3", "data.train=96", "data.test=30", "data.batch_size=16"]
QUICK = [*SYN, "student=resnet8", "teacher=resnet8", "logger=none", "trainer.enable_progress_bar=false"]


class Const(nn.Module):
    """A value that nothing trains."""

    def forward(self, student: Tensor) -> Tensor:
        return student.detach().mean()


@pytest.mark.parametrize(
    ("words", "epoch", "why"),
    [
        ("objective=ce objective.ce.stop=1", 1, "objective.ce (stop=1)"),
        ("objective=ce objective.ce.start=1", 0, "objective.ce (start=1)"),
        ("objective=ce objective.ce.weight=0", 0, "objective.ce (weight=0)"),
        ("objective=kd alpha=1 objective.kd.stop=2", 2, "objective.ce (weight=0), objective.kd (stop=2)"),
        ("objective=kd objective.ce.stop=1 objective.kd.start=2", 1, "objective.ce (stop=1), objective.kd (start=2)"),
        ("objective=kd objective.kd.stop=1 objective.ce.start=2", 1, "objective.ce (start=2), objective.kd (stop=1)"),
    ],
)
def test_an_epoch_in_which_no_term_counts_is_refused_before_anything_is_trained(
    words: str, epoch: int, why: str, complain: Complain, tmp_path: Path
) -> None:
    said = complain(*QUICK, "epochs=3", *words.split())
    assert said == f"error: no term of the objective is active in epoch {epoch} (counted from 0): {why}"
    assert not (tmp_path / "runs/teachers").exists()


def test_epochs_after_the_runs_end_and_a_rising_weight_are_no_fault() -> None:
    objective = Objective({"ce": Term(CE(), stop=3)})
    objective.check_epochs(3)
    with pytest.raises(InputError, match="epoch 3"):
        objective.check_epochs(4)
    with pytest.raises(InputError, match="epoch 3"):
        objective.check_epochs(-1)
    Objective({"ce": Term(CE(), warmup=5, start=0), "more": Term(CE(), start=7)}).check_epochs(None)


def network(name: str) -> Normalized:
    return Normalized(kd.models[name](classes=3, channels=1), [0.5], [0.5])


class Counted(Frozen):
    """A teacher that says in which steps of training it ran."""

    def __init__(self) -> None:
        super().__init__(network("cnn"))
        self.calls: list[int] = []
        self.step: Any = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.step is not None and (step := self.step()) is not None:
            self.calls.append(step)
        return super().forward(batch)


def pictures(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator)
    return images.to(torch.uint8), labels


def fitted(objective: Objective, teacher: Frozen | None, epochs: int = 3, **kinds: Any) -> tuple[Distiller, pl.Trainer]:
    data = Data(Memory(Arrays(pictures(48), pictures(30), ("a", "b", "c")), batch_size=16, val="test"))
    torch.manual_seed(0)
    make, kind = kinds.get("make", partial(torch.optim.SGD, lr=0.05)), kinds.get("kind", Distiller)
    student = kinds.get("student") or network("cnn")
    distiller = kind(student, teacher, objective, Optim(make), data.shape, 3)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    if isinstance(teacher, Counted):
        teacher.step = lambda: trainer.global_step if trainer.training else None
    trainer.fit(distiller, datamodule=data)
    return distiller, trainer


@pytest.mark.parametrize(
    ("term", "steps"),
    [
        ({"weight": 0}, []),
        ({"weight": 0.9, "start": 2}, [6, 7, 8]),
        ({"weight": 0.9, "stop": 1}, [0, 1, 2]),
        ({"weight": 0.9, "warmup": 3}, [*range(9)]),
    ],
    ids=["weight-0", "late-start", "early-stop", "warmup"],
)
def test_the_teacher_runs_only_in_steps_where_a_term_with_it_counts(term: dict[str, Any], steps: list[int]) -> None:
    teacher = Counted()
    _, trainer = fitted(Objective({"ce": Term(CE(), 0.1), "kd": Term(KL(), **term)}), teacher)
    assert teacher.calls == steps
    assert "val/agreement" in trainer.callback_metrics, "it is measured in validation all the same"
    assert ("train/kl" in trainer.callback_metrics) == ("train/kd" in trainer.callback_metrics) == bool(steps)


def test_a_term_of_weight_zero_without_the_teacher_is_still_logged() -> None:
    _, trainer = fitted(Objective({"ce": Term(CE()), "sure": Term(Entropy(), 0)}), None, epochs=1)
    assert "train/sure" in trainer.callback_metrics


def test_optimiser_with_two_parts_works_in_epochs_without_the_teacher() -> None:
    teacher = Counted()
    terms = Objective({"ce": Term(CE(), 0.1), "kd": Term(KL(), 0.9, start=1)})
    fitted(terms, teacher, epochs=2, kind=DOTDistiller, make=partial(DOT, lr=0.05))
    assert teacher.calls == [3, 4, 5]


def test_separate_gradients_pass_twice_through_recomputed_blocks() -> None:
    weights = []
    for again in (False, True):
        torch.manual_seed(1)
        student = network("resnet8")
        if again:
            assert recompute(student)
        torch.manual_seed(2)
        terms = Objective({"ce": Term(CE(), 0.1), "kd": Term(KL(), 0.9)})
        fitted(terms, Counted(), epochs=1, kind=DOTDistiller, make=partial(DOT, lr=0.05), student=student)
        weights.append({key: value.clone() for key, value in student.state_dict().items()})
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], msg=key)


def test_a_run_with_dot_and_recompute_ends_well(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(
        *QUICK, "epochs=1", "optim=dot", "speed.recompute=true", "teacher.min_accuracy=0", "hydra.run.dir=run"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["training"]["steps"] == 5


def logits(classes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(classes)
    return {"": torch.randn(2, classes, generator=generator)}, {"": torch.randn(2, classes, generator=generator)}


STANDARDISED = [KL(standardise=True), JS(standardise=True), TV(standardise=True), DKD(standardise=True)]
STANDARDISED += [NKD(standardise=True), DIST(standardise=True)]


@pytest.mark.parametrize("loss", STANDARDISED, ids=lambda loss: type(loss).__name__)
def test_warning_for_standardised_logits_of_two_classes(loss: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    for classes, expected in ((2, True), (3, False), (10, False)):
        caplog.clear()
        check_terms(Objective({"ce": Term(CE()), "kd": Term(loss)}), *logits(classes))
        assert ("objective.kd has no effect: its gradient vanishes for 2 classes" in caplog.text) == expected


@pytest.mark.parametrize("loss", [CE(), KL(), Entropy(), DIST()], ids=lambda loss: type(loss).__name__)
def test_a_run_over_one_class_in_which_nothing_can_be_learned_is_refused(loss: nn.Module) -> None:
    with pytest.raises(InputError, match=r"objective\.kd: .*(2 classes|two at least)"):
        check_terms(Objective({"kd": Term(loss)}), *logits(1))


def test_plain_losses_on_two_classes_teach(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for loss in (CE(), KL(), DKD(), NKD(), DIST(), MLKD(), JS(), TV(), Entropy()):
            check_terms(Objective({"kd": Term(loss)}), *logits(2))
    assert not caplog.text


def test_lskd_on_two_classes_warns_in_a_run(kd_train: Run) -> None:
    words = [word for word in QUICK if "classes" not in word]
    done = kd_train(*words, "data.classes=2", "epochs=1", "objective=lskd", "teacher.min_accuracy=0")
    assert done.returncode == 0, done.stderr
    assert "objective.kd has no effect: its gradient vanishes for 2 classes" in done.stdout + done.stderr


def test_a_term_that_gives_nothing_a_gradient_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"objective\.still: the value of Const depends neither on the student"):
        check_terms(Objective({"ce": Term(CE()), "still": Term(Const())}), *logits(5))
    check_terms(Objective({"ce": Term(CE()), "still": Term(Const(), weight=0)}), *logits(5))


def test_trial_restores_the_term_and_the_random_state() -> None:
    class Counting(nn.Module):
        seen = 0

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            self.seen += 1
            return (student - teacher + torch.rand(1)).square().mean()

    loss, state = Counting(), torch.get_rng_state()
    check_terms(Objective({"mine": Term(loss)}), *logits(5))
    assert loss.seen == 0
    assert torch.equal(torch.get_rng_state(), state)
