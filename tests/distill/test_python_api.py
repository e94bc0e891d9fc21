"""The distiller in Python: which objects may be a teacher, an objective, an optimiser and a batch."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from torch import nn
from torch.utils.data import DataLoader

import kd
from kd import Distiller, Frozen, InputError, Objective, Optim, Term
from kd.callbacks.position import Position
from kd.cli import compose
from kd.losses import CE, KL

SHAPE = (1, 8, 8)
OPTIM = partial(torch.optim.SGD, lr=0.1)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def distiller(**changed: Any) -> Distiller:
    given = {"student": network(), "teacher": network(), "objective": {"ce": CE(), "kd": Term(KL(), 0.9)}}
    return Distiller(**{**given, "optim": OPTIM, "shape": SHAPE, "classes": 4, **changed})


def rows(kind: str) -> list[Any]:
    images, labels = torch.rand(32, *SHAPE), [i % 4 for i in range(32)]
    if kind == "dict":
        return [{"pixel_values": image, "label": label} for image, label in zip(images, labels)]
    return list(zip(images, labels))


def fit(module: Distiller, kind: str, folder: Path) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[kd.Gate({"": 0.0})], default_root_dir=str(folder), **quiet
    )
    loader = DataLoader(rows(kind), batch_size=8)  # type: ignore[arg-type]
    trainer.fit(module, loader, loader)
    trainer.test(module, loader, verbose=False)
    return trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pair", "dict"])
def test_minimal_python_use(kind: str, tmp_path: Path) -> None:
    trainer = fit(distiller(), kind, tmp_path)
    assert trainer.global_step == 4
    assert 0 <= float(trainer.callback_metrics["test/acc"]) <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_position", [True, False])
def test_resuming_without_the_position_callback_warns(
    with_position: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def trainer(epochs: int) -> pl.Trainer:
        callbacks = [kd.Gate({"": 0.0}), *([Position()] if with_position else [])]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return pl.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=callbacks, default_root_dir=str(tmp_path), **quiet
        )

    loader = DataLoader(rows("pair"), batch_size=8)  # type: ignore[arg-type]
    first = trainer(1)
    first.fit(distiller(), loader, loader)
    first.save_checkpoint(tmp_path / "one.ckpt")
    assert "resume" not in caplog.text
    trainer(2).fit(distiller(), loader, loader, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert ("add kd.callbacks.Position()" in caplog.text) is not with_position


def test_a_network_as_teacher_is_frozen() -> None:
    module = distiller()
    assert isinstance(module.teacher, Frozen)
    assert not any(p.requires_grad for p in module.teacher.network.parameters())
    assert not any("teacher" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize(
    "objective",
    [{"ce": CE()}, {"ce": Term(CE())}, CE(), Term(CE()), Objective({"ce": Term(CE())})],
    ids=["named-loss", "named-term", "loss", "term", "objective"],
)
def test_losses_without_terms_have_weight_1(objective: Any) -> None:
    (term,) = (term for _, term in distiller(objective=objective, teacher=None).objective.named_terms())
    assert isinstance(term, Term)
    assert term.weight == 1


BAD = {
    "optimiser": (
        {"optim": torch.optim.SGD(network().parameters(), lr=0.1)},
        r"optim is a SGD with fixed parameters.* kd\.Optim\(functools\.partial\(torch\.optim\.SGD, lr=0\.1\)\)",
    ),
    "rate": ({"optim": 0.1}, r"optim must be a function that creates an optimiser, for example kd\.Optim"),
    "teacher": ({"teacher": "resnet56"}, r"teacher must be a network, kd\.Frozen\(network\) or None, got a str"),
    "list": ({"objective": [CE()]}, r"objective must be terms by name, for example kd\.Objective.*got a list"),
    "words": ({"objective": {"ce": "ce"}}, r"objective must be terms by name"),
    "shape": (
        {"student": nn.Conv2d(1, 4, 8), "shape": (3, 32, 32)},
        r"not accept the data's images \[3, 32, 32\]: ",
    ),
    "classes": ({"classes": 5}, r"the student must return logits \[B, 5\]"),
    "one class": (
        {"classes": 1, "student": nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "teacher": None},
        "at least 2 classes",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_parts_give_a_one_line_error(kind: str) -> None:
    changed, said = BAD[kind]
    if kind == "one class":
        changed = {**changed, "objective": CE()}
    with pytest.raises(InputError, match=said) as refused:
        distiller(**changed)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")
def test_a_forgotten_shape_is_named_at_the_first_batch(tmp_path: Path) -> None:
    student = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(InputError, match=r"are \[1, 8, 8\], but the declared shape .* is \[1, 32, 32\]; set shape="):
        fit(distiller(student=student, teacher=None, objective=CE(), shape=(1, 32, 32)), "pair", tmp_path)


def test_optim_object_is_unchanged() -> None:
    optim = Optim(OPTIM, schedule="constant")
    assert distiller(optim=optim).optim is optim
    assert distiller(optim=None).optim is None


def test_a_configuration_is_composed_as_on_the_command_line_and_repeatedly() -> None:
    first = compose("T=2", "teacher=[mlp,cnn]", "objective.kd.start=1")
    assert first["T"] == 2.0
    assert list(first["teacher"]["members"]) == ["mlp", "cnn"]
    assert first["objective"]["kd"]["start"] == 1
    assert type(first["objective"]) is dict
    assert compose()["T"] == 4.0
    assert compose("run=RUN", config="evaluate")["part"] == "test"
    assert compose("runs=RUNS", config="report") == {"runs": "RUNS", "out": None}


def test_composing_inside_a_hydra_job_leaves_that_job_s_configuration() -> None:
    with initialize_config_dir(str(kd.CONFIG_DIR), version_base="1.3"):
        assert compose("T=2")["T"] == 2.0
        assert hydra_compose("train", ["T=3"])["T"] == 3.0


@pytest.mark.parametrize(
    ("overrides", "config", "message"),
    [
        (("trainer.max_epoch=3",), "train", "unknown key trainer.max_epoch; did you mean trainer.max_epochs?"),
        (("student=resnet21",), "train", "unknown choice student=resnet21; did you mean student=resnet"),
        (("T=warm",), "train", "T=warm: Value 'warm' of type 'str' could not be converted to Float"),
        (("T",), "train", "options are written key=value"),
        ((), "export", "run must be given"),
    ],
)
def test_a_configuration_that_cannot_be_composed_is_an_input_error(
    overrides: tuple[str, ...], config: str, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        compose(*overrides, config=config)
