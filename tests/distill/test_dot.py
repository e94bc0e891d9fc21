"""DOT: two momenta by hand, parameters with only one gradient, SGD as its limit, and exact resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Run
from safetensors.torch import load_file
from small_runs import trained
from torch import Tensor, nn

from kd import Arrays, Data, Distiller, Frozen, InputError, Memory, Objective, Optim, Term
from kd.callbacks.checkpoint import AtomicCheckpointIO
from kd.callbacks.position import Position
from kd.distill.dot import DOTDistiller
from kd.losses import CE, KL
from kd.optim import DOT, sgd

LR, MOMENTUM, DELTA, DECAY = 0.1, 0.9, 0.075, 0.01


class Net(nn.Module):
    """Two linear layers; both gradients reach them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.hidden, self.fc = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x.to(self.fc.weight.dtype).flatten(1) / 255).tanh())


class Regressed(nn.Module):
    """mean (W student - teacher)^2, with a W that only distillation reaches."""

    def build(self, student: Tensor, teacher: Tensor) -> None:
        torch.manual_seed(7)
        self.w = nn.Linear(student.shape[1], teacher.shape[1], bias=False).to(student.dtype)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (self.w(student) - teacher).square().mean()


class Keep(pl.Callback):
    """Saves a checkpoint after some steps."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 4, 4), generator=generator).to(torch.uint8)
    arrays = Arrays((images, torch.arange(32) % 3), (images, torch.arange(32) % 3), ("a", "b", "c"))
    return Data(Memory(arrays, batch_size=8, val="test"))


def terms() -> Objective:
    hint = Term(Regressed(), 0.5, "hidden", "hidden")
    return Objective({"ce": Term(CE(), 0.3), "kd": Term(KL(T=2), 0.7), "hint": hint})


def distiller(make: Any = None, objective: Objective | None = None, kind: type[Distiller] = DOTDistiller) -> Distiller:
    make = make or (lambda p: DOT(p, lr=LR, momentum=MOMENTUM, delta=DELTA, weight_decay=DECAY))
    optim = Optim(make, schedule="constant", warmup=0)
    return kind(Net(1), Frozen(Net(2)), objective or terms(), optim, (1, 4, 4), 3, config={"seed": 0})


def fit(module: Distiller, steps: int, **options: Any) -> pl.Trainer:
    path = options.pop("ckpt_path", None)
    quiet = {f"enable_{what}": False for what in ("progress_bar", "model_summary", "checkpointing")}
    options |= {
        "accelerator": "cpu",
        "logger": False,
        "limit_val_batches": 0,
        "plugins": [AtomicCheckpointIO()],
        "callbacks": [Position(), *options.pop("callbacks", [])],
        **quiet,
    }
    trainer = pl.Trainer(max_steps=steps, **options)
    trainer.fit(module, datamodule=data(), ckpt_path=path, weights_only=True)
    return trainer


def by_hand(module: Distiller, steps: int) -> dict[str, Tensor]:
    """The parameters after some steps, from gradients taken one at a time and the paper's update."""
    module, known = copy.deepcopy(module), data()
    momenta: dict[str, dict[str, Tensor]] = {"task": {}, "kd": {}}
    for batch, _ in zip(known.train_dataloader(), range(steps)):
        gradients = {}
        for kind, names in (("task", ["ce"]), ("kd", ["kd", "hint"])):
            module.zero_grad()
            part = Objective({name: module.objective.terms[name] for name in names})  # type: ignore[misc]
            part(module.taps(batch.images), batch.labels, module.teacher(batch))[0].backward()  # type: ignore[misc]
            gradients[kind] = {key: p.grad for key, p in module.named_parameters()}
        with torch.no_grad():
            for key, p in module.named_parameters():
                task, kd = gradients["task"][key], gradients["kd"][key]
                if task is None:  # of distillation alone
                    rates, task = {"kd": MOMENTUM}, None
                    kd = kd + DECAY * p
                else:
                    rates = {"task": MOMENTUM - DELTA, "kd": MOMENTUM + DELTA}
                    task = task + DECAY * p
                for kind, g in (("task", task), ("kd", kd)):
                    if g is not None:
                        momenta[kind][key] = rates[kind] * momenta[kind].get(key, torch.zeros_like(g)) + g
                p -= LR * sum(momenta[kind][key] for kind in rates)
    return {key: p.detach() for key, p in module.named_parameters()}


def same(one: nn.Module, other: dict[str, Tensor], **close: float) -> None:
    found = dict(one.named_parameters())
    assert set(found) == set(other)
    for key, value in other.items():
        torch.testing.assert_close(found[key].detach(), value, msg=lambda m, k=key: f"{k}: {m}", **close)


def test_three_steps_are_those_of_a_hand_computation() -> None:
    module = distiller().double()
    expected = by_hand(module, 3)
    fit(module, 3, precision="64-true")
    assert any("hint" in key for key in expected)
    same(module, expected, rtol=1e-10, atol=1e-12)


def test_without_delta_or_without_a_teacher_it_is_sgd() -> None:
    plain = lambda p: sgd(p, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)  # noqa: E731
    zero = lambda p: DOT(p, lr=LR, momentum=MOMENTUM, delta=0.0, weight_decay=DECAY)  # noqa: E731
    for left, right in (
        (distiller(zero), distiller(plain, kind=Distiller)),
        (
            distiller(objective=Objective({"ce": Term(CE())}), kind=Distiller),
            distiller(plain, Objective({"ce": Term(CE())}), Distiller),
        ),
    ):
        fit(left, 6)
        fit(right, 6)
        same(left, dict(right.named_parameters()), rtol=1e-4, atol=1e-6)


def test_gradients_accumulate_over_batches() -> None:
    module = distiller()
    fit(module, 1, accumulate_grad_batches=2)
    whole = distiller()
    known = data()
    first, second = (batch for batch, _ in zip(known.train_dataloader(), range(2)))
    optimizer = whole.optim.configure(whole, 1)["optimizer"]  # type: ignore[union-attr]
    pairs = []
    for batch in (first, second):
        whole.zero_grad()
        answers = []
        for part in whole.__dict__["kinds"]:
            total, _ = part(whole.taps(batch.images), batch.labels, whole.teacher(batch))  # type: ignore[misc]
            answers.append(torch.autograd.grad(total / 2, list(whole.parameters()), allow_unused=True))
        pairs.append(answers)
    optimizer.take(list(whole.parameters()), pairs[0])
    optimizer.take(list(whole.parameters()), pairs[1])
    optimizer.step()
    same(module, dict(whole.named_parameters()), rtol=1e-5, atol=1e-7)


def test_resumed_run_has_both_momenta(tmp_path: Path) -> None:
    straight, second = distiller(), distiller()
    fit(straight, 7, callbacks=[Keep(5, tmp_path / "last.ckpt")])
    fit(second, 7, ckpt_path=tmp_path / "last.ckpt")
    same(second, dict(straight.named_parameters()), rtol=0, atol=0)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {frozenset(s) for s in state.values()} == {
        frozenset({"task_momentum", "distillation_momentum"}),
        frozenset({"distillation_momentum"}),
    }


def test_unsupported_options_are_refused() -> None:
    with pytest.raises(InputError, match="the objective has no distillation term"):
        distiller(objective=Objective({"ce": Term(CE())}))
    with pytest.raises(InputError, match="gradient_clip_val=null"):
        fit(distiller(), 1, gradient_clip_val=1.0)
    with pytest.raises(InputError, match="lie in"):
        DOT([nn.Parameter(torch.zeros(1))], momentum=0.9, delta=0.2)


def test_dot_can_be_selected_for_any_objective(tmp_path: Path) -> None:
    small = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=200", "data.test=40", "epochs=2")
    words = ("teacher=cnn", "teacher.min_accuracy=0", "student=cnn", "objective=at", "optim=dot", "optim.lr=0.02")
    layers = ("objective.at.student=[stage1,stage2]", "objective.at.teacher=[stage1,stage2]")
    folder = trained(tmp_path, *small, *words, *layers)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert any("task_momentum" in s and "distillation_momentum" in s for s in state.values())


@pytest.mark.slow
def test_two_processes_equal_one_process(kd_train: Run, tmp_path: Path) -> None:
    small = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=200", "data.test=41", "epochs=2")
    words = (*small, "teacher=mlp", "teacher.min_accuracy=0", "student=mlp", "optim=dot", "logger=none")
    # batch norms would see other batches, so networks without; the teacher is there before
    for name, more in (
        ("first", ("data.batch_size=32",)),
        ("one", ("data.batch_size=32", "teacher.checkpoint=first")),
        ("two", ("data.batch_size=16", "teacher.checkpoint=first", "trainer=ddp", "trainer.accelerator=cpu")),
    ):
        more = (*more, "trainer.enable_progress_bar=false", f"hydra.run.dir={name}")
        done = kd_train(*words, *more, fresh="trainer=ddp" in more)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
