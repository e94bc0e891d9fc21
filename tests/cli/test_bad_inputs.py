"""Bad input at the command line: one line that names the fault, the right exit code, before training, no partial files.

Damaged data files of every format are in test_formats.py and test_data.py, containers of weights in test_containers.py,
full disks in test_run_folder_safety.py, and lost processes in test_processes.py.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from command_runs import POISON, edited, finite, launched, torn
from conftest import Complain
from small_runs import trained
from test_containers import bad_files
from test_data import make_folder, make_idx

import kd
from kd.errors import InputError, Stopped, TrainingFailed
from kd.process.classify import classify
from kd.process.exits import Exit, exit_on_error

BASE = {
    "data": "synthetic",
    "data.shape": "[1,8,8]",
    "data.classes": "4",
    "data.train": "60",
    "data.test": "20",
    "data.batch_size": "10",
    "teacher": "none",
    "objective": "ce",
    "student": "cnn",
    "epochs": "1",
    "trainer.enable_progress_bar": "false",
    "logger": "none",
    "hydra.run.dir": "run",
}
IN_MEMORY = ("data.shape", "data.classes", "data.train", "data.test", "data.batch_size")


def given(words: str) -> list[str]:
    """The given overrides, and those that make the rest a small run."""
    typed = words.split()
    said = {word.lstrip("+").partition("=")[0] for word in typed}
    left = IN_MEMORY if "data" in said else ()
    return [*(f"{key}={value}" for key, value in BASE.items() if key not in said and key not in left), *typed]


def small(*but: str) -> list[str]:
    """The overrides of a small run in this process, without some keys."""
    left = ("hydra.run.dir", "logger", "trainer.enable_progress_bar", *but)
    return [f"{key}={value}" for key, value in BASE.items() if key not in left]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger().handlers.clear()  # an earlier run's, whose stream is gone
    return tmp_path


def nothing_half_written(folder: Path) -> bool:
    """Whether runs have written nothing but Hydra's record of the overrides, the log, and the lock."""
    left = {path.name for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts}
    return left <= {"train.log", "teacher.log", ".lock"}


# ---------------------------------------------------------------- configuration

CONFIGURATION: dict[str, dict[str, str]] = {
    "misspelt-option": {"trainer.max_epoch=3": "unknown key trainer.max_epoch; did you mean trainer.max_epochs?"},
    "misspelt-option-that-is-added": {
        "+trainer.max_epoch=3": "unknown option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"
    },
    "unknown-choice": {
        "objective=dkdd": "unknown choice objective=dkdd; did you mean objective=dkd?",
        "+loss@objective.x=dkdd": "unknown choice loss=dkdd; did you mean loss=dkd?",
        "callbacks=none": "unknown choice callbacks=none",
    },
    "wrong-type": {
        "T=abc": "T=abc: Value 'abc' of type 'str' could not be converted to Float; for example T=4.0",
        "objective.ce.weight=abc": "objective.ce.weight=abc: Value 'abc' of type 'str'",
        "trainer.enable_progress_bar=perhaps": "trainer.enable_progress_bar=perhaps must be true or false or null",
        "trainer.deterministic=maybe": "trainer.deterministic=maybe must be true or false or null or warn",
        "data.shape=abc": "synthetic needs shape=[C,H,W]",
        "cache=3": "cache=3 must be a group of keys",
        "+objective.x._target_=os.getcwd": "objective.x: a loss must be an nn.Module, got a str",
    },
    "epochs-that-are-no-whole-number": {
        "trainer.max_epochs=three": "trainer.max_epochs=three must be a whole number of at least 1",
        "trainer.max_epochs=2.5": "trainer.max_epochs=2.5 must be a whole number of at least 1",
        "epochs=2.5": "epochs=2.5: Value '2.5'",
    },
    "empty-or-missing-value": {
        "seed=": "seed=: Value '' of type 'str' could not be converted to Integer",
        "student=": "student=: student takes the name of a choice",
        "data=null": "data=null: data takes the name of a choice",
        "hydra.run.dir=": "hydra.run.dir= names no folder",
        "~T": "T must be given",
        "teacher=[]": "teacher=[] names no teacher",
    },
    "missing-option-of-a-library-network": {
        "student=torchvision": "student.name must be given",
        "student=timm": "student.name must be given",
    },
    "one-choice-made-twice": {
        "student=cnn student=mlp": "student is chosen 2 times: student=cnn and student=mlp; give one of them",
        "+loss@objective.x=ce +loss@objective.x=kl": "loss@objective.x is chosen 2 times",
    },
    "learning-rate-out-of-range": {
        "optim.lr=-1": "optim: lr must be a finite number above 0, got -1.0",
        "optim.lr=nan": "optim: lr must be a finite number above 0, got nan",
        "optim.lr=1e-3x": "optim.lr=1e-3x: Value '1e-3x' of type 'str' could not be converted to Float",
    },
    "temperature-out-of-range": {
        "T=0": "T=0 must be a finite number above 0",
        "T=-1": "T=-1 must be a finite number above 0",
        "objective=kd teacher=mlp objective.kd.T=0": "objective.kd: T must be",
    },
    "alpha-out-of-range": {
        "alpha=-0.1": "alpha=-0.1 must lie in [0, 1]; the nearest allowed value is alpha=0",
        "alpha=2": "alpha=2 must lie in [0, 1]; the nearest allowed value is alpha=1",
        "alpha=nan": "alpha=nan must lie in [0, 1]",
    },
    "length-out-of-range": {
        "trainer.max_epochs=0": "trainer.max_epochs=0 must be a whole number of at least 1",
        "trainer.max_epochs=-3": "trainer.max_epochs=-3 must be a whole number of at least 1",
        "trainer.limit_train_batches=0": "trainer.limit_train_batches=0 must be a whole number of at least 1, or",
        "trainer.limit_train_batches=0.01": "trainer.limit_train_batches=0.01 of 5 batches is none; 0.2 is one",
        "trainer.limit_val_batches=0": "trainer.limit_val_batches=0 must be a whole number of at least 1, or a share",
        "+trainer.max_steps=0": "trainer.max_steps=0 must be a whole number of at least 1, or -1 for all",
    },
    "interval-out-of-range": {
        "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0 must be a whole number of at least 1",
        "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0 must be a whole number of at least 1",
        "trainer.check_val_every_n_epoch=5": "trainer.check_val_every_n_epoch=5 must be at most the run's 1 epochs",
        "trainer.log_every_n_steps=0": "trainer.log_every_n_steps=0 must be a whole number of at least 1",
    },
    "negative-gradient-clipping": {
        "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val=-1 must be a finite number of at least 0"
    },
    "seed-out-of-range": {
        "seed=-1": "seed=-1 must lie in [0, 2**32)",
        "seed=1099511627776": "seed=1099511627776 must lie in [0, 2**32)",
        "seed=abc": "seed=abc: Value 'abc'",
    },
    "absent-environment-variable": {
        "teachers=${oc.env:KD_NO_SUCH}": "teachers: KeyError raised while resolving interpolation"
    },
    "override-that-cannot-be-parsed": {
        "foo": "Error parsing override 'foo': missing EQUAL",
        "objective.ce.weight=[1,": "Error parsing override 'objective.ce.weight=[1,': no viable alternative",
        "--max_epochs 3": "unrecognized arguments: --max_epochs 3; options are written key=value",
    },
    "unknown-metric-or-mode": {
        "callbacks.best.monitor=val/accc": "callbacks.best.monitor=val/accc: unknown metric 'val/accc'; did you mean",
        "callbacks.best.monitor=teacher/acc": "callbacks.best.monitor=teacher/acc: unknown metric 'teacher/acc'",
        "callbacks.best.mode=maxx": "callbacks.best.mode=maxx: unknown mode 'maxx'; did you mean 'max'?",
    },
    "pickled-job": {"--experimental-rerun job.pickle": "--experimental-rerun runs a pickle"},
    "batch-size-or-workers-out-of-range": {
        "data.batch_size=0": "batch_size and eval_batch_size must be at least 1, got 0, 500",
        "data=folder data.root=pets data.workers=-1": "workers at least 0",
    },
    "device-that-is-not-there": {
        "trainer.devices=0": "trainer.devices=0 must be a whole number from 1",
        "trainer.devices=two": "trainer.devices=two must be a whole number from 1",
        "trainer.devices=99": "trainer.devices=99 must be a whole number from 1",
        "trainer.accelerator=gpuu": "trainer.accelerator=gpuu: unknown accelerator 'gpuu'; did you mean 'gpu'?",
        "trainer.accelerator=tpu": "trainer.accelerator=tpu: torch finds no such device",
    },
    "strategy-or-precision-that-is-not-there": {
        "trainer.strategy=dpp": "trainer.strategy=dpp: unknown strategy 'dpp'; did you mean 'ddp'?",
        "trainer.precision=fp17": "trainer.precision=fp17: unknown precision 'fp17'",
        "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU; available: bf16-mixed",
        "trainer.precision=transformer-engine": "trainer: Requirement 'transformer_engine",
    },
    "run-folder-that-cannot-be-used": {
        "hydra.run.dir=file": "the run folder cannot be made: ",
        "hydra.run.dir=file/below": "the run folder cannot be made: ",
        "hydra.run.dir=/proc/none": "the run folder cannot be made: /proc/none: ",
        "hydra.run.dir=before": "before already contains a run",
    },
}
CASES = [
    pytest.param(words, said, id=f"{fault}: {words}")
    for fault, lines in CONFIGURATION.items()
    for words, said in lines.items()
]


@pytest.mark.parametrize(("words", "said"), CASES)
def test_bad_command_lines(words: str, said: str, complain: Complain, here: Path) -> None:
    (here / "file").touch()
    (here / "before").mkdir()
    (here / "before/summary.json").touch()
    if "pets" in words:
        make_folder(here / "pets")
    before = {path for path in here.rglob("*") if path.is_file()}
    line = complain(*given(words))
    assert said in line
    assert len(line) < 900
    for path in before:
        path.unlink()
    assert nothing_half_written(here)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", ["trainer=gpu", "trainer.accelerator=gpu", "trainer.accelerator=cuda"])
def test_missing_gpu(words: str, complain: Complain, here: Path) -> None:
    assert "torch finds no such device; use trainer=cpu" in complain(*given(words))


EXPERIMENT = {
    "trainer: {max_epoch: 3}": "unknown option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
    "optim: {lrr: 0.1}": "unknown key optim.lrr; did you mean optim.lr?",
    "epoch: 3": "unknown key epoch; did you mean epochs?",
    "callbacks: {best: {moniter: val/acc}}": "unknown option 'callbacks.best.moniter'; did you mean",
    "cache: {rooot: x}": "unknown option 'cache.rooot'; did you mean 'cache.root'?",
}


@pytest.mark.parametrize("text", EXPERIMENT)
def test_unknown_key_in_a_users_experiment_file(text: str, complain: Complain, here: Path) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    (here / "conf/experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert EXPERIMENT[text] in complain("--config-dir", "conf", *given("experiment=mine"))
    assert not list(here.rglob("summary.json"))


def test_targets_typed_by_the_user_are_allowed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kd-train", *given("+callbacks.own._target_=pytorch_lightning.callbacks.Timer")])
    kd.cli.train()
    assert (here / "run/summary.json").exists()


# ---------------------------------------------------------------- teachers and checkpoints

TEACHERS = {
    "absent-file": ("absent.pth", "no weights at absent.pth"),
    "folder-without-weights": ("folder", "folder is a folder without student.safetensors"),
    "empty-file": ("empty.pth", "empty.pth is empty"),
    "file-cut-off": ("cut.safetensors", "cut.safetensors is damaged, truncated"),
    "web-page": ("page.pth", "page.pth is a web page, not a weights file"),
    "pickled-module": (
        "module.pth",
        "module.pth contains Python objects besides tensors, which could run code, so it is not loaded",
    ),
    "nested-under-an-unknown-key": (
        "nested.pth",
        "nested.pth contains no state dict of tensors, but 'weights', 'epoch'",
    ),
    "too-few-weights": ("less.pth", "1 missing, first layer1.0.conv1.weight"),
    "weights-of-another-network": ("other.pth", "other.pth does not fit ResNet: 72 unexpected"),
    "teacher-of-other-classes": ("seven.pth", "2 of another shape, first fc.weight [7, 64] for [10, 64]"),
    "weights-that-are-not-finite": ("nan.pth", "nan.pth: fc.weight contains values that are not finite"),
    "URL": ("https://example.org/teacher.pth", "is a URL; weights are read from local files only"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    bad_files(folder)
    return folder


@pytest.mark.parametrize("fault", TEACHERS)
def test_unusable_teacher_weights(fault: str, files: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    file, said = TEACHERS[fault]
    monkeypatch.chdir(files)
    small = (
        "data=synthetic",
        "data.shape=[1,8,8]",
        "data.classes=10",
        "data.train=60",
        "data.test=20",
        "data.batch_size=20",
    )
    assert said in complain(*small, "teacher=resnet8", f"teacher.checkpoint={file}", f"hydra.run.dir=run-{fault}")
    assert not list(files.rglob("summary.json"))


def test_teacher_with_a_single_logit(complain: Complain, here: Path) -> None:
    (here / "one.py").write_text(
        "from torch import nn\n\ndef net(shape):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))\n"
    )
    assert "the teacher must return logits [B, 4] for the data's 4 classes, got [2, 1]" in complain(
        *given("teacher=import teacher.path=one:net objective=kd")
    )
    assert nothing_half_written(here / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("finished"), *small())


def test_teacher_weights_replaced_after_the_run(finished: Path, complain: Complain, here: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(finished, here / "teacher")
    state = load_file(here / "teacher/student.safetensors")
    state["fc.bias"][0] += 1
    save_file(state, here / "teacher/student.safetensors")
    line = complain(*given("teacher=cnn teacher.checkpoint=teacher objective=kd"))
    assert "student.safetensors is not what the run wrote: its sha256 is" in line
    assert "student.safetensors is not what the run wrote" in complain("run=teacher", command="evaluate")
    assert nothing_half_written(here / "run")


def test_library_weights_without_network(complain: Complain, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import time

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError(101, "Network is unreachable")

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(here))
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert "unknown timm model 'resnett10'; did you mean" in complain(*given("student=timm student.name=resnett10"))
    started = time.monotonic()
    line = complain(*given("student=timm student.name=resnet10t student.pretrained=true"))
    assert line.startswith("error: student: timm cannot build resnet10t: ")
    line = complain(*given("student=torchvision student.name=resnet18 student.weights=DEFAULT"))
    assert "resnet18-f37072fd.pth cannot be fetched" in line
    assert time.monotonic() - started < 15


# ---------------------------------------------------------------- resuming a run

OTHERS = {
    "T=2": "T (4.0 in the run, 2.0 given)",
    "optim.lr=0.3": "optim.lr (0.05 in the run, 0.3 given)",
    "optim=adamw": "optim._target_ (kd.optim.sgd in the run, kd.optim.adamw given)",
    "student=resnet8": "student._target_",
    "data.batch_size=32": "data.batch_size (16 in the run, 32 given)",
    "experiment=cifar100/resnet56_resnet20": "data._target_",
    "seed=3": "seed (0 in the run, 3 given)",
}


@pytest.mark.parametrize("word", OTHERS)
def test_resume_with_other_options_is_refused(copy: Path, complain: Complain, word: str) -> None:
    before = (copy / "run/config.yaml").read_text()
    line = complain("resume=run", word)
    assert line.startswith("error: resume=run is a different experiment: ")
    assert OTHERS[word] in line
    assert (copy / "run/config.yaml").read_text() == before


def _both_torn(run: Path) -> None:
    torn(run)
    (run / "checkpoints/previous.ckpt").write_bytes(b"")


SPOILED = {
    "newer-format": (
        lambda run: edited(run / "checkpoints/last.ckpt", format_version=99),
        "last.ckpt has format 99, written by a later version of kd",
    ),
    "weights-without-a-run": (
        lambda run: torch.save({"fc.weight": torch.zeros(2)}, run / "checkpoints/last.ckpt"),
        "last.ckpt is not a checkpoint of a run of kd, so training cannot be resumed from it",
    ),
    "other-data": (
        lambda run: edited(run / "checkpoints/last.ckpt", data_sha256="0" * 64),
        "last.ckpt was trained with another data: sha256 " + "0" * 64,
    ),
    "another-teacher": (
        lambda run: edited(run / "checkpoints/last.ckpt", teacher_sha256="0" * 64),
        "last.ckpt was trained with another teacher: sha256",
    ),
    "both-checkpoints-cut-off": (
        _both_torn,
        "is damaged or truncated, and there is no other intact checkpoint beside it",
    ),
    "no-configuration": (lambda run: (run / "config.yaml").unlink(), "no training has started there"),
    "half-a-configuration": (lambda run: (run / "config.yaml").write_text("T: 4\n"), "config.yaml is damaged"),
    "configuration-that-is-no-yaml": (lambda run: (run / "config.yaml").write_text("a: [\n"), "config.yaml is damaged"),
    "foreign-code": (
        lambda run: _foreign(run / "config.yaml"),
        "callbacks.evil names 'os.system', which is not registered with kd; it is not run unless trust=true is set",
    ),
}


def _foreign(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    config["callbacks"]["evil"] = {"_target_": "os.system", "command": "touch here"}
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("what", SPOILED)
def test_resume_from_a_damaged_or_foreign_run_is_refused(copy: Path, complain: Complain, what: str) -> None:
    spoil, said = SPOILED[what]
    spoil(copy / "run")
    assert said in complain("resume=run")
    assert not (copy / "here").exists()


@pytest.mark.parametrize("run", ["nowhere", "http://localhost/run", "mark"])
def test_resume_of_something_that_is_no_run(copy: Path, complain: Complain, run: str) -> None:
    assert complain(f"resume={run}").startswith(f"error: resume={run} is not a run folder")
    assert not (copy / "nowhere").exists()


def test_truncated_checkpoint_falls_back_to_the_previous_one(copy: Path) -> None:
    torn(copy / "run")
    on = launched(copy, "resume=run")
    assert on.returncode == 0, on.stderr
    assert "last.ckpt is damaged or truncated" in on.stdout
    assert "resume: from step 7, run/checkpoints/previous.ckpt" in on.stdout


def test_resume_of_a_running_run_is_refused(copy: Path) -> None:
    script = "import fcntl, time; file = open('run/.lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
    script += "print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script], cwd=copy, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        on = launched(copy, "resume=run")
    finally:
        other.kill()
        other.wait()
    assert on.returncode == 2
    assert on.stderr == "error: another process is training in run; wait for it, or stop it first\n"


EXPORTS = {
    "format=onx": "unknown format 'onx'; did you mean 'onnx'?",
    "format=safetensors": "student.safetensors exists; set overwrite=true to replace it",
    "format=safetensors softmax=true": "softmax=true needs a format with a graph",
}


@pytest.mark.parametrize("words", EXPORTS)
def test_bad_exports(words: str, finished: Path, complain: Complain, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out/student.safetensors").touch()
    assert EXPORTS[words] in complain(f"run={finished}", "out=out", *words.split(), command="export")
    assert [path.name for path in (here / "out").iterdir()] == ["student.safetensors"]


# ---------------------------------------------------------------- data

OWN = """
import os, torch
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset
from kd import Arrays

def arrays(kind):
    images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    if kind == "sizes":
        return Arrays((images, labels), (images[:, :, :6], labels), tuple("abcd"))
    if kind == "range":
        return Arrays((images, labels + 9), (images, labels), tuple("abcd"))
    if kind == "hundred":
        return Arrays((images, labels * 0 - 100), (images, labels), tuple("abcd"))
    if kind == "unlabelled":
        return Arrays((images, labels * 0 - 1), (images, labels), tuple("abcd"))

class Items(Dataset):
    def __init__(self, kind):
        self.kind = kind
    def __len__(self):
        return 16
    def __getitem__(self, i):
        if self.kind == "killed":
            os.kill(os.getpid(), 9)
        pixel, label = float("nan") if self.kind == "infinite" else i / 16, 7 if self.kind == "label" else i % 4
        return torch.full((1, 8, 8), pixel), label

class Module(pl.LightningDataModule):
    classes, shape = 4, (1, 8, 8)
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
    def train_dataloader(self):
        size, workers = (50 if self.kind == "few" else 8), (1 if self.kind == "killed" else 0)
        return DataLoader(Items(self.kind), batch_size=size, num_workers=workers, drop_last=True)
    def val_dataloader(self):
        return DataLoader(Items("whole"), batch_size=8)
    test_dataloader = val_dataloader
"""
DATA = {
    "missing-folder": ("data=folder data.root=/nowhere", 2, "data.root=/nowhere is not a folder"),
    "empty-folder": ("data=folder data.root=empty", 2, "empty"),
    "cifar-files-missing": ("data=cifar10 data.root=empty", 2, "no cifar-10-batches-py"),
    "idx-file-cut-off": ("data=mnist data.root=idx", 2, "train-images-idx3-ubyte"),
    "damaged-picture": (
        "data=folder data.root=torn data.size=16 data.batch_size=4 data.workers=0",
        2,
        "bee/2.png cannot be decoded",
    ),
    "parts-of-different-shapes": (
        "data=own data.kind=sizes",
        2,
        "training and test images differ in shape: [1, 8, 8] and [1, 6, 8]",
    ),
    "parts-of-different-classes": ("data=folder data.root=other data.size=16", 2, "cow"),
    "labels-too-large": ("data=own data.kind=range", 2, "the training labels are out of range for 4 classes"),
    "labels-of-minus-100": ("data=own data.kind=hundred", 2, "the training labels are out of range for 4 classes"),
    "no-labels-at-all": (
        "data=own data.kind=unlabelled",
        2,
        "no training image has a label, and every term of the objective needs one",
    ),
    "label-too-large-in-a-batch": (
        "data=module data.kind=label",
        2,
        "the data has the label 7",
    ),
    "batch-larger-than-the-data": ("data.batch_size=500", 2, "batch_size=500 exceeds the 54 training images"),
    "no-whole-batch": (
        "data=module data.kind=few",
        2,
        "no step was trained: the training data has no full batch",
    ),
    "pixels-that-are-not-finite": ("data=module data.kind=infinite", 3, "the loss term ce is nan at step 1"),
    "killed-worker": ("data=module data.kind=killed", 3, "a data worker "),
}


@pytest.mark.parametrize("fault", DATA)
def test_unusable_data(fault: str, complain: Complain, here: Path) -> None:
    words, code, said = DATA[fault]
    (here / "own.py").write_text(OWN)
    (here / "conf/data").mkdir(parents=True)
    (here / "conf/data/own.yaml").write_text("_target_: own.arrays\nkind: ???\nbatch_size: 8\nval: test\n")
    (here / "conf/data/module.yaml").write_text("_target_: own.Module\nkind: ???\n")
    (here / "empty").mkdir()
    if "data.root=" in words:
        make_idx(here / "idx")
        (here / "idx/train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b")
        for name in ("torn", "other"):
            make_folder(here / name)
        (here / "torn/train/bee/2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (here / "other/val/ant").rename(here / "other/val/cow")
    line = complain("--config-dir", "conf", *given(words), code=code)
    assert said in line
    assert not list(here.rglob("summary.json"))
    assert not list(here.rglob("student.safetensors"))


def test_images_without_labels_cannot_be_evaluated(complain: Complain, here: Path) -> None:
    words = ["data.per_class=4", "data.unlabelled=true", "objective=kd", "teacher=mlp", "teacher.min_accuracy=0"]
    run = trained(here, *small("objective", "teacher"), *words)
    line = complain(f"run={run}", "part=train", command="evaluate")
    assert "part=train: 38 of 54 images have no label; set part=val or part=test" in line
    assert not (run / "evaluation").exists()


# ---------------------------------------------------------------- the machine

SHM = (
    "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.2 GiB is"
HOST = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
MACHINE: dict[str, tuple[BaseException, int, str]] = {
    "no-memory-on-the-gpu": (
        torch.OutOfMemoryError(CUDA),
        3,
        "out of memory on the GPU (tried to allocate 20.00 gib); reduce data.batch_size",
    ),
    "no-memory-on-the-host": (RuntimeError(HOST), 3, "out of memory; reduce data.batch_size"),
    "no-memory-for-python": (
        MemoryError(),
        3,
        "out of memory; reduce data.batch_size or data.workers",
    ),
    "shared-memory-too-small": (
        RuntimeError(SHM),
        3,
        "the shared memory in /dev/shm is too small for the data workers",
    ),
    "disk-full-in-mid-run": (
        OSError(28, "No space left on device", "a.txt"),
        3,
        "no space left: No space left on device: a.txt",
    ),
    "training-failed": (TrainingFailed("it did not work"), 3, "it did not work"),
    "bad-input": (InputError("a=1 must be 2"), 2, "a=1 must be 2"),
    "SIGTERM": (Stopped(15, "stopped by SIGTERM at step 3"), 143, "stopped by SIGTERM at step 3"),
    "SIGINT": (KeyboardInterrupt(), 130, "stopped by SIGINT"),
}


@pytest.mark.parametrize("what", MACHINE)
def test_machine_failures(what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    error, code, line = MACHINE[what]
    for name in ("HYDRA_FULL_ERROR", "KD_FULL_ERROR"):
        monkeypatch.setenv(name, "0")
    around = RuntimeError("something around it")
    around.__cause__ = error
    for raised in (error, around):
        assert classify(raised)[0] == code
    with pytest.raises(Exit) as ended, exit_on_error():
        raise around
    assert ended.value.code == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: {line}")


def test_out_of_memory_in_a_run(complain: Complain, here: Path) -> None:
    (here / "full.py").write_text(BROKEN)
    words = given("+callbacks.own._target_=full.Broken +callbacks.own.kind=memory")
    assert "out of memory; reduce data.batch_size" in complain(*words, code=3)
    assert not (here / "run/traceback.txt").exists()
    assert not (here / "run/summary.json").exists()


def test_no_disk_space_for_two_checkpoints(complain: Complain, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    line = complain(*given(""))
    assert "no space left for checkpoints: 0.0 MB are free, two checkpoints need about" in line
    assert not list(here.rglob("*.ckpt"))


def test_nonfinite_gradient_ends_the_run_before_the_update(tmp_path: Path) -> None:
    done = launched(tmp_path, POISON, "+callbacks.poison.step=10", "hydra.run.dir=run")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "the gradient of student.net.layer1" in line
    assert "is not finite, although the loss is, at step 10; nothing after step 9 was saved" in line
    assert finite(tmp_path / "run") == 7
    assert not (tmp_path / "run/summary.json").exists()


def test_nonfinite_loss_term_is_named(tmp_path: Path) -> None:
    done = launched(tmp_path, "optim.lr=1e30", "optim.warmup=0", "hydra.run.dir=run")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "error: the loss term ce is " in line
    assert "A lower optim.lr" in line


def test_a_few_nonfinite_updates_may_be_skipped(tmp_path: Path) -> None:
    few = (POISON, "+callbacks.poison.step=3", "nan=skip", "callbacks.finite.most=2")
    done = launched(tmp_path, *few, "+callbacks.poison.times=2", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "update skipped (2 of 2)" in done.stdout
    assert finite(tmp_path / "run") == 14
    many = launched(tmp_path, *few, "+callbacks.poison.times=3", "hydra.run.dir=many")
    assert many.returncode == 3
    assert "at step 5, after 2 skipped updates" in many.stderr


@pytest.mark.slow
def test_nonfinite_gradient_on_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    two = ("trainer.devices=2", "trainer.strategy=ddp", "data.train=280")
    struck = (POISON, "+callbacks.poison.step=3", "+callbacks.poison.rank=1")
    done = launched(tmp_path, *two, *struck, "hydra.run.dir=run", fresh=True)
    assert done.returncode == 3
    assert done.stderr.count("at step 3") == 1


# ---------------------------------------------------------------- bugs

BROKEN = """
from pytorch_lightning.callbacks import Callback

class Broken(Callback):
    def __init__(self, kind):
        self.kind = kind

    def on_train_batch_start(self, trainer, module, batch, step):
        raise {"bug": KeyError("a bug"), "memory": MemoryError(), "long": LookupError("first\\nsecond")}[self.kind]
"""


@pytest.mark.parametrize(("kind", "line"), [("bug", "KeyError: 'a bug'"), ("long", "LookupError: first")])
def test_bug_writes_its_traceback_to_the_run_folder(kind: str, line: str, complain: Complain, here: Path) -> None:
    (here / "full.py").write_text(BROKEN)
    words = given(f"+callbacks.own._target_=full.Broken +callbacks.own.kind={kind}")
    said = complain(*words, code=1)
    assert said == f"error: {line}; the whole traceback is in {here / 'run/traceback.txt'}"
    text = (here / "run/traceback.txt").read_text()
    assert text.startswith("Traceback (most recent call last):")
    assert "in on_train_batch_start" in text


def test_bug_without_a_run_folder_writes_its_traceback_to_a_temporary_file(
    complain: Complain, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(here))

    def broken(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("kd.evaluate._device", broken)
    said = complain("run=nowhere", command="evaluate", code=1)
    (file,) = here.iterdir()
    assert said == f"error: KeyError: 'a bug'; the whole traceback is in {file}"
    assert "Traceback" in file.read_text()


def test_whole_tracebacks_are_shown_when_asked(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "full.py").write_text(BROKEN)
    cases: dict[str, int] = {"+callbacks.own._target_=full.Broken +callbacks.own.kind=bug": 1, "alpha=2": 2}
    run: Callable[[], None] = kd.cli.train
    for words, code in cases.items():
        monkeypatch.delenv("KD_FULL_ERROR", raising=False)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", ["kd-train", *given(words)])
        with pytest.raises(SystemExit) as stop:
            run()
        said = capsys.readouterr().err
        assert stop.value.code == code
        assert said.count("Traceback (most recent call last):") >= 1
        assert "Error executing job" not in said
        assert said.splitlines()[-1].startswith("error: ")
