"""Pre-training stages: their own learning rate, a schedule that begins after them, and a fresh optimiser."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_resume import MEMORY, as_if_nothing_happened, interrupted, whole
from torch import nn

import kd
from kd import Arrays, Data, Distiller, Objective, Optim, Term
from kd.cli import compose
from kd.distill.pretraining import stage_of
from kd.errors import InputError
from kd.losses import AB, CE, FT, KL
from kd.train import assemble

make = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def trainer(steps: int, epochs: int, accumulate: int = 1) -> Any:
    return SimpleNamespace(
        estimated_stepping_batches=steps * epochs,
        max_epochs=epochs,
        num_training_batches=steps * accumulate,
        accumulate_grad_batches=accumulate,
    )


@pytest.mark.parametrize("init", [30 / 270, 0.1111, None])
@pytest.mark.parametrize("steps", [1, 7, 781, 782])
def test_milestones_after_pre_training_apply_at_their_step(init: float | None, steps: int) -> None:
    objective = Objective({"ce": Term(CE(), start=30), "ab": Term(AB(), stop=30)})
    optim = Optim(make, "multistep", warmup=0, init=init)
    stage = stage_of(objective, optim, trainer(steps, 270))
    assert stage == (30, 30 * steps)
    rates = [optim.factor(step, 270 * steps, stage.steps) for step in range(270 * steps)]
    drops = [step for step in range(1, 270 * steps) if rates[step] != rates[step - 1]]
    assert drops == [180 * steps, 210 * steps, 240 * steps]


def test_milestones_with_only_a_share_of_pre_training_apply_at_their_step() -> None:
    optim = Optim(make, "multistep", warmup=0, init=30 / 270)
    rates = [optim.factor(step, 2700) for step in range(2700)]
    assert [step for step in range(1, 2700) if rates[step] != rates[step - 1]] == [1800, 2100, 2400]


def test_the_stage_is_the_epochs_before_the_labels_count() -> None:
    ab, ft = Term(AB(), stop=3), Term(FT(init_epochs=3))
    run = trainer(10, 5)
    assert stage_of(Objective({"ce": Term(CE(), start=3), "ab": ab}), Optim(make), run) == (3, 30)
    assert stage_of(Objective({"ce": Term(CE(), start=3), "ft": ft}), Optim(make), run) == (3, 30)
    assert stage_of(Objective({"ce": Term(CE(), start=3), "ab": ab}), Optim(make), trainer(10, 5, 4)) == (3, 30)
    # a term that ends early, labels that join later, no labels at all: none of them is pre-training
    assert stage_of(Objective({"ce": Term(CE()), "ab": ab}), Optim(make), run) == (0, 0)
    assert stage_of(Objective({"ce": Term(CE(), start=3), "kd": Term(KL())}), Optim(make), run) == (0, 0)
    assert stage_of(Objective({"kd": Term(KL())}), Optim(make), run) == (0, 0)


def test_a_stage_has_its_own_rate() -> None:
    for optim, rate in ((Optim(make, "constant", init_lr=0.01), 1.0), (Optim(make, "constant"), 0.2)):
        configured = optim.configure(nn.Linear(2, 2), total=10, begin=4, init_rate=rate)
        optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        optim.warmup = 0
        rates = []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates[:4] == pytest.approx([0.01] * 4, rel=1e-12)
        assert rates[4:] == [0.05] * 6
    with pytest.raises(InputError, match="init_lr"):
        Optim(make, init_lr=-1)


@pytest.mark.parametrize(
    ("pair", "rate"), [("resnet32x4_resnet8x4", 0.01), ("wrn_40_2_wrn_16_2", 0.01), ("vgg13_vgg8", 0.05),
                       ("vgg13_MobileNetV2", 0.01), ("resnet32x4_ShuffleV1", 0.01)]
)  # fmt: skip
def test_factor_transfer_pre_trains_at_the_benchmark_s_rate(pair: str, rate: float) -> None:
    config = compose(f"experiment=cifar100/{pair}", "objective=ft")
    found = assemble.objective(config["objective"]).init_rate() * config["optim"]["lr"]
    assert found == pytest.approx(rate, rel=1e-12)


class Memory(pl.Callback):
    """How many parameters the optimiser remembers something of, before each step; and the rates."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        (optimizer,) = trainer.optimizers
        self.sizes.append(len(optimizer.state))
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "dot"])
def test_optimiser_is_reset_where_pre_training_ends(optimiser: str) -> None:
    config = compose(
        *("objective=fitnets", "init_epochs=2", "objective.fitnets.stop=2", "objective.ce.start=2"),
        *("objective.fitnets.student=stage1", "objective.fitnets.teacher=stage1", "optim.init_lr=0.001"),
        *("teacher=resnet8", "student=cnn", f"optim={optimiser}", "optim.schedule=constant", "optim.warmup=0"),
    )
    images = torch.randint(0, 256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    arrays = Arrays((images, torch.arange(24) % 4), (images, torch.arange(24) % 4), tuple("abcd"))
    data = Data(kd.Memory(arrays, batch_size=8, val="test"))
    student, teacher = assemble.network(config["student"], "student", data), assemble.teacher(config, data)
    terms = assemble.objective(config["objective"])
    distiller = Distiller(student, teacher, terms, assemble.optim(config["optim"]), data.shape, 4)
    memory = Memory()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=[memory], enable_model_summary=False, **quiet).fit(
        distiller, datamodule=data
    )
    lower = memory.sizes[1]  # the layers up to the hint, and the regressor
    assert memory.sizes == [0, *[lower] * 5, 0, *memory.sizes[7:]]
    assert all(size > 0 for size in memory.sizes[7:])
    lr = config["optim"]["lr"]
    assert memory.rates == pytest.approx([0.001] * 6 + [lr] * 6, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["between", "step"])
def test_resume_around_the_end_of_pre_training_is_exact(tmp_path: Path, moment: str) -> None:
    words = (*MEMORY, "objective=fsp", "init_epochs=1", "student=resnet8", "optim.init_lr=0.01")
    words += ("callbacks.last.steps=2",)
    full = whole(tmp_path, "full", *words)
    strike = {"moment": moment, "epoch": 1, **({"batch": 1} if moment == "step" else {})}
    as_if_nothing_happened(interrupted(tmp_path, "struck", strike, *words), full)
