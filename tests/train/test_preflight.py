"""What the end of a run needs is checked at its start, before a teacher or a student is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Complain
from small_runs import trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kd
import kd.train.preflight
from kd.errors import InputError
from kd.run_folder.summary import read_summary
from kd.train import assemble

HERE = __name__
SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=60", "data.test=20"),
    *("data.batch_size=10", "epochs=1"),
)
ALONE = ("teacher=none", "objective=ce")


class Net(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.drop(self.conv(x).mean((2, 3))))


class ExtraState(Net):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state["version"] == 3


class TensorState(ExtraState):
    def get_extra_state(self) -> Tensor:  # type: ignore[override]
        return torch.tensor([3])

    def set_extra_state(self, state: Tensor) -> None:  # type: ignore[override]
        assert int(state) == 3


class Forgets(Net):
    """Comes back with other weights than were written."""

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({key: torch.zeros_like(value) for key, value in state.items()})


class Refuses(Net):
    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("only my own loader may do that")


class Changing(Net):
    """Has other layers each time that it is made."""

    made = 0

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        Changing.made += 1
        self.add_module(f"layer{Changing.made}", nn.Linear(2, 2))


class NoGradient(Net):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return super().forward(x)


class InPlace(Net):
    """Overwrites in training what its gradient needs."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x).exp()
        return y.mul_(2) if self.training else y


class BadInTraining(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[:, :2] if self.training else super().forward(x)


class Uncopied(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("a handle cannot be copied")


def own(name: str) -> list[str]:
    return ["~student", f"+student._target_={HERE}.{name}"]


CASES = {
    "ExtraState": "student: ExtraState has '_extra_state', a dict, in its state dict, but only tensors can be",
    "Forgets": "student: the weights of Forgets change when written and read back",
    "Refuses": "student: the weights of Refuses cannot be written and read back (ValueError: only my own loader may",
    "Changing": "student: the saved state dict of Changing does not fit Changing: 2 missing",
    "NoGradient": "student: NoGradient has nothing to train: its logits depend on no trainable parameter",
    "InPlace": "student: InPlace cannot be trained (RuntimeError: one of the variables needed for gradient computation",
    "BadInTraining": "the student, in training, must return logits [B, 4]",
}


@pytest.mark.parametrize("name", CASES)
def test_unsavable_student_is_refused_before_teacher_training(name: str, complain: Complain, tmp_path: Path) -> None:
    line = complain(*SMALL, *own(name), "teacher=cnn", "hydra.run.dir=run")
    assert CASES[name] in line
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "run/checkpoints").exists()


def test_tensor_state_reloads(tmp_path: Path) -> None:
    kd.load(trained(tmp_path, *SMALL, *own("TensorState"), *ALONE), trust=True)


def test_a_student_that_cannot_be_copied_is_refused_for_a_moving_average(complain: Complain) -> None:
    line = complain(*SMALL, *own("Uncopied"), *ALONE, "callbacks=ema")
    assert line == "error: callbacks.ema: Uncopied cannot be copied (RuntimeError: a handle cannot be copied)"
    line = complain(*SMALL, *own("Uncopied"), "teacher=ema", "objective=kd")
    assert "Uncopied cannot be copied (RuntimeError: a handle cannot be copied)" in line


def test_predictor_that_cannot_be_reloaded_is_refused(complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*_: Any) -> None:
        raise ValueError("damaged")

    monkeypatch.setattr("kd.run_folder.predictor.load_into", spoiled)
    words = (*SMALL, "data.shape=[3,32,32]", "student=resnet8", "teacher=resnet14", "objective=simkd")
    line = complain(*words)
    assert "the predictor cannot be written and read back (ValueError: damaged)" in line


class Module(pl.LightningDataModule):
    """A data module of the user's own."""

    classes, shape = 4, (1, 8, 8)

    def __init__(self, test: str = "good") -> None:
        super().__init__()
        self.test = test

    def loader(self, labels: int = 4) -> Any:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(40, 1, 8, 8, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(40) % labels), batch_size=10)

    def train_dataloader(self) -> Any:
        return self.loader()

    def val_dataloader(self) -> Any:
        return self.loader()


class Whole(Module):
    def test_dataloader(self) -> Any:
        return self.loader(9 if self.test == "labels" else 4)


@pytest.mark.parametrize(
    ("name", "test", "said"),
    [
        ("Whole", "labels", "the test labels are out of range for 4 classes"),
    ],
)
def test_unusable_test_part_is_refused_at_the_start(
    name: str, test: str, said: str, complain: Complain, tmp_path: Path
) -> None:
    words = ("~data", f"+data._target_={HERE}.{name}", f"+data.test={test}", "epochs=1")
    assert said in complain(*words, "student=cnn", *ALONE, "hydra.run.dir=run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_complete_data_module_passes(tmp_path: Path) -> None:
    words = ("~data", f"+data._target_={HERE}.Whole", "epochs=1")
    assert read_summary(trained(tmp_path, *words, "student=cnn", *ALONE))["training"]["steps"] == 4


def test_preflight_does_not_change_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(tmp_path / "a", *SMALL, *own("Net"), "teacher=cnn", "teacher.min_accuracy=0")
    monkeypatch.setattr("kd.train.pipeline.preflight", lambda *_: None)
    second = trained(tmp_path / "b", *SMALL, *own("Net"), "teacher=cnn", "teacher.min_accuracy=0")
    assert read_summary(first)["student"]["sha256"] == read_summary(second)["student"]["sha256"]
    assert read_summary(first)["metrics"] == read_summary(second)["metrics"]


def test_preflight_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def timed(*given: Any) -> None:
        start = time.process_time()
        kd.train.preflight.preflight(*given)
        taken.append(time.process_time() - start)

    monkeypatch.setattr("kd.train.pipeline.preflight", timed)
    trained(tmp_path, *SMALL, "student=resnet20", *ALONE)
    assert len(taken) == 1
    assert taken[0] < 2


def test_preflight_restores_gradients_and_modes() -> None:
    source = {"_target_": "kd.data.sources.synthetic", "shape": [1, 8, 8], "classes": 4, "train": 60, "test": 20}
    data = assemble.data({"data": {**source, "batch_size": 10}, "seed": 0})
    config = {
        "seed": 0,
        "T": 4.0,
        "alpha": 0.9,
        "teacher": None,
        "trainer": {},
        "callbacks": {},
        "student": {"_target_": f"{HERE}.Net"},
        "objective": {"ce": {"_target_": "kd.losses.hard.CE"}},
        "optim": {"_target_": "kd.optim.sgd"},
    }
    distiller = assemble.distiller(config, data, None)
    before = {key: value.clone() for key, value in distiller.state_dict().items()}
    kd.train.preflight.preflight(config, data, distiller)
    assert distiller.student.training
    assert all(parameter.grad is None for parameter in distiller.parameters())
    assert all(torch.equal(value, before[key]) for key, value in distiller.state_dict().items())
    with pytest.raises(InputError, match="the configuration cannot be written"):
        kd.train.preflight.preflight({**config, "task": torch.float32}, data, distiller)
