"""The command line for users: runs, run folders, bad input, and user code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Complain, Run
from fork import kd_train_in
from hydra.core.config_store import ConfigStore

import kd
import kd.cli

# a teacher and a student that train in a second or two
SMALL = (
    "data=synthetic",
    "data.shape=[1,8,8]",
    "data.classes=4",
    "data.train=400",
    "data.test=100",
    "teacher=resnet8",
    "teacher.epochs=6",
    "student=cnn",
    "epochs=2",
    "trainer.enable_progress_bar=false",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Two runs in one folder: the second finds the first one's teacher."""
    folder = tmp_path_factory.mktemp("runs")
    said = []
    for seed in (0, 1):
        done = kd_train_in(folder, [*SMALL, f"seed={seed}", f"hydra.run.dir=runs/train/{seed}"], {})
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    return folder, said


def test_output_of_a_run(runs: tuple[Path, list[str]]) -> None:
    first, second = runs[1]
    assert "teacher: no checkpoint, so it is trained first, 6 epochs, once" in first
    assert "teacher: reused from runs/teachers/resnet8-" in second
    assert "data: 360 train, 40 val, 100 test; 4 classes, images 1x8x8" in second
    assert "objective: total = 0.1 * ce + 0.9 * kd" in second
    assert "objective: kd = KL(T=4): T^2 * KL(teacher || student)" in second
    assert "teacher resnet8" in second
    assert "agreement with the teacher on test" in second
    assert "tensorboard --logdir runs/train/1" in second


def test_the_run_folder_is_complete(runs: tuple[Path, list[str]]) -> None:
    folder = runs[0] / "runs/train/0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["format_version"] == 1
    assert summary["data"]["train"] == 360
    assert summary["student"]["name"] == "cnn"
    assert summary["teacher"]["name"] == "resnet8"
    assert summary["training"]["steps"] == 10
    assert {"acc", "nll", "ece", "agreement", "kl", "teacher_acc"} <= set(summary["metrics"]["test"])
    assert summary["metrics"]["last"]["epoch"] == 1
    assert summary["metrics"]["best"]["val/acc"] >= summary["metrics"]["last"]["val/acc"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["T"] == 4.0
    assert (folder / "train.log").read_text().count("objective: total") == 2  # teacher and student
    assert list(folder.glob("events.out.tfevents*"))


def test_checkpoint_and_optimiser_exclude_the_teacher(runs: tuple[Path, list[str]]) -> None:
    folder = runs[0] / "runs/train/0"
    for name in ("best", "last"):
        held = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert all(key.startswith("student.") for key in held["state_dict"])
        trained = sum(len(group["params"]) for group in held["optimizer_states"][0]["param_groups"])
        assert trained == len(list(kd.models["cnn"](classes=4, channels=1).parameters()))


def test_teacher_weights_do_not_change(runs: tuple[Path, list[str]]) -> None:
    (teacher,) = (runs[0] / "runs/teachers").iterdir()
    kept = kd.load(teacher)
    digests = {
        json.loads((runs[0] / f"runs/train/{seed}/summary.json").read_text())["teacher"]["sha256"] for seed in (0, 1)
    }
    assert digests == {kd.Frozen(kept).fingerprint()}


def test_saved_student_loads_with_and_without_kd(runs: tuple[Path, list[str]]) -> None:
    folder = runs[0] / "runs/train/0"
    student = kd.load(folder)
    assert not student.training
    assert student(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 4)
    script = f"""
import sys, torch
from safetensors.torch import load_file
net = torch.nn.Module()
def block(i, o):
    conv = torch.nn.Conv2d(i, o, 3, padding=1, bias=False)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(o), torch.nn.ReLU())
net.layer1, net.layer2, net.fc = block(1, 16), block(16, 32), torch.nn.Linear(32, 4)
net.load_state_dict(load_file({str(folder / "student.safetensors")!r}), strict=True)
assert not any(name == "kd" or name.startswith("kd.") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=runs[0])
    assert done.returncode == 0, done.stderr


def test_tensorboard_events_contain_the_curves(runs: tuple[Path, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs[0] / "runs/train/0")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/ce", "train/kd", "train/kl", "train/soft_ce", "teacher/entropy"} <= tags
    assert {"val/acc", "teacher/acc", "val/agreement", "val/ece", "optim/lr", "time/images_per_s", "hp/val_acc"} <= tags
    assert {"pictures/confusion", "pictures/disagreement"} <= set(events.Tags()["images"])
    value = {tag: events.Scalars(tag)[-1].value for tag in ("train/kl", "train/soft_ce", "teacher/entropy")}
    assert value["train/kl"] == pytest.approx(value["train/soft_ce"] - value["teacher/entropy"], abs=1e-5)
    assert {"hp/teacher_acc", "hp/agreement"} <= tags
    (alone,) = (runs[0] / "runs/teachers").iterdir()
    untaught = EventAccumulator(str(alone)).Reload().Tags()["scalars"]
    assert {tag for tag in untaught if tag.startswith("hp/")} == {"hp/val_acc", "hp/val_nll"}


def test_a_sweep_makes_a_folder_for_each_point(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, "-m", "T=1,4", "alpha=0.5,0.9", "trainer.max_epochs=1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"sweep/{job}/summary.json").read_text()) for job in range(4)]
    points = [(summary["objective"]["T"], summary["objective"]["alpha"]) for summary in found]
    assert points == [(1, 0.5), (1, 0.9), (4, 0.5), (4, 0.9)]
    assert len({summary["teacher"]["sha256"] for summary in found}) == 1
    assert len(list((tmp_path / "runs/teachers").iterdir())) == 1


BAD = {  # what is wrong with single keys is in test_bad_inputs.py
    "student=resnet9": "unknown choice student=resnet9; did you mean student=resnet8?",
    "data=cifr10": "unknown choice data=cifr10; did you mean data=cifar10?",
    "teachr=none": "unknown key teachr; did you mean teacher?",
    "experiment=none_such": "unknown choice experiment=none_such",
    "objective.kd.TT=3": "unknown key objective.kd.TT; did you mean objective.kd.T?",
    "objective.kd.weight=-1": "objective.kd: weight must be at least 0, got -1.0",
    "objective.kd.student=layer9": "unknown layer of CNN 'layer9'; did you mean 'layer2'?",
    "optim.schedule=cosin": "optim: unknown schedule 'cosin'; did you mean 'cosine'?",
    "teacher=none": "teacher=none, but the term 'kd' needs a teacher; try objective=ce",
    "data.batch_size=5000": "data: batch_size=5000 exceeds the",
    "data.val=7": "data: val must be a fraction in (0, 1) or 'test', got 7",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_gives_a_one_line_error(
    override: str, complain: Complain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert BAD[override] in complain(override)
    assert not list(tmp_path.rglob("summary.json"))
    assert not list(tmp_path.rglob("teachers"))


def test_missing_data_root_gives_a_one_line_error_in_the_shell(kd_train: Run) -> None:
    done = kd_train("data.root=/nowhere", "data=cifar10")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.root=/nowhere does not exist")
    assert len(done.stderr.splitlines()) == 1


def test_full_errors_are_shown_when_asked(kd_train: Run) -> None:
    done = kd_train("alpha=2", HYDRA_FULL_ERROR="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "alpha=2 must lie in" in done.stderr


PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "theirs"
version = "1.0"
[project.entry-points."kd.plugins"]
theirs = "theirs"
""",
    "theirs/__init__.py": '''
import torch
from torch import Tensor, nn
import kd
from kd import Arrays


@kd.losses.register("cosine")
class Cosine(nn.Module):
    """1 - cosine of student and teacher."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - nn.functional.cosine_similarity(student, teacher, eps=self.eps).mean()


@kd.models.register("linear")
def linear(classes: int, shape: list[int], bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes, bias=bias))


@kd.data.register("halves")
def halves(count: int = 200) -> Arrays:
    labels = torch.arange(count) % 2
    images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    images[labels == 1, :, :2] = 200
    return Arrays((images, labels), (images[:50], labels[:50]), ("dark", "light"))
''',
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_an_installed_package_adds_a_loss_a_model_and_a_data_set(kd_train: Run, tmp_path: Path) -> None:
    write(tmp_path / "src", PACKAGE)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*install, str(tmp_path / "src")], check=True, capture_output=True)
    write(tmp_path / "conf", {"data/halves.yaml": "defaults: [/source@_here_: halves]\n"})
    done = kd_train(
        *("--config-dir", "conf", "data=halves", "data.batch_size=32", "student=linear", "teacher=linear"),
        *("teacher.bias=false", "objective=kd", "+loss@objective.cosine=cosine", "objective.cosine.weight=0.5"),
        *("epochs=3", "trainer.enable_progress_bar=false", "hydra.run.dir=run"),
        PYTHONPATH=str(site),
    )
    assert done.returncode == 0, done.stderr
    assert "0.5 * cosine" in done.stdout
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["student"]["name"] == "linear"
    assert summary["metrics"]["test"]["acc"] == 1.0


OWN = {
    "mine.py": """
import torch
from torch import nn
from kd import Arrays

class Distance(nn.Module):
    def forward(self, student, teacher):
        return (student - teacher).square().mean()

def net(num_classes, in_channels):
    body = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8, num_classes))

def load(count=120):
    labels = torch.arange(count) % 3
    images = (labels.view(-1, 1, 1, 1) * 100).expand(-1, 1, 6, 6).to(torch.uint8)
    return Arrays((images, labels), (images[:30], labels[:30]), ("a", "b", "c"))
""",
    "conf/loss/distance.yaml": "_target_: mine.Distance\nweight: 0.1\n",
    "conf/student/net.yaml": "_target_: mine.net\n",
    "conf/data/mine.yaml": "_target_: mine.load\nbatch_size: 24\n",
}


def test_loss_model_and_data_from_files_in_the_working_folder(kd_train: Run, tmp_path: Path) -> None:
    write(tmp_path, OWN)
    done = kd_train(
        *("--config-dir", "conf", "data=mine", "student=net", "teacher=cnn", "epochs=1", "hydra.run.dir=run"),
        *("+loss@objective.distance=distance", "trainer.enable_progress_bar=false"),
    )
    assert done.returncode == 0, done.stderr
    assert "0.1 * distance" in done.stdout
    with pytest.raises(kd.InputError, match=r"student names 'mine\.net', which is not registered"):
        kd.load(tmp_path / "run")


def test_student_with_a_predictor_in_its_objective_loads(kd_train: Run, tmp_path: Path) -> None:
    given = ["student=resnet8x4" if word == "student=cnn" else word for word in SMALL]
    done = kd_train(*given, "objective=simkd", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    student = kd.load(tmp_path / "run")
    data = kd.data["synthetic"](shape=[1, 8, 8], classes=4, train=400, test=100)
    with torch.no_grad():
        hits = (student(data.test[0]).argmax(1) == data.test[1]).float().mean()
    assert hits == pytest.approx(summary["metrics"]["test"]["acc"], abs=1e-6)
    assert summary["student"]["predictor"]["parameters"] > 0


def test_a_learned_temperature_is_logged(kd_train: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = kd_train(*SMALL, "objective=ctkd", "trainer.log_every_n_steps=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    learned = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("train/ctkd/T")
    assert learned[0].value == pytest.approx(1 + 20 / (1 + 2.718281828**-1), abs=1e-3)
    assert learned[-1].value != learned[0].value


LIGHTNING = """
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader, TensorDataset

class Module(pl.LightningDataModule):
    classes, shape = 2, (1, 4, 4)
    def part(self):
        labels = torch.arange(64) % 2
        return DataLoader(TensorDataset(labels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).float(), labels), batch_size=16)
    train_dataloader = val_dataloader = test_dataloader = part
"""


def test_training_on_class_folders(kd_train: Run, tmp_path: Path) -> None:
    from test_data import make_folder

    make_folder(tmp_path / "pets", per_class=10)
    done = kd_train(
        *("data=imagenet", f"data.root={tmp_path / 'pets'}", "data.size=16", "data.batch_size=5", "data.workers=0"),
        *("data.val=test", "teacher=none", "objective=ce", "epochs=1", "hydra.run.dir=run"),
        "trainer.enable_progress_bar=false",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["training"]["steps"] == 4


def test_training_with_a_lightning_data_module(kd_train: Run, tmp_path: Path) -> None:
    write(tmp_path, {"theirs.py": LIGHTNING, "conf/data/theirs.yaml": "_target_: theirs.Module\n"})
    done = kd_train(
        *("--config-dir", "conf", "data=theirs", "teacher=mlp", "student=mlp", "student.width=8", "epochs=2"),
        *("trainer.enable_progress_bar=false", "hydra.run.dir=run"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["training"]["steps"] == 8


@pytest.mark.parametrize(("function", "key"), [("kd.run_folder.load:load", "folder"), ("kd.evaluate:evaluate", "data")])
def test_the_keys_of_a_command_are_the_parameters_of_any_function(
    function: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kd.cli.FUNCTIONS, "new", function)
    kd.cli._register_function("new")
    assert key in set(ConfigStore.instance().load("new_root.yaml").node)
