"""A LightningDataModule of the user: what it may yield, in which order, and what is counted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from conftest import Complain, Run
from PIL import Image
from pytorch_lightning.callbacks import Callback
from small_runs import trained
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import kd
from kd import InputError
from kd.data.custom import adopted
from kd.data.datamodule import data_of, image_data
from kd.evaluate.loaded_run import batches

SHAPE, CLASSES = (1, 8, 8), 4
SEEN: list[list[int]] = []
QUIET = ("student=mlp", "student.width=8", "trainer.enable_progress_bar=false", "callbacks.pictures=null")


class Items(Dataset[Any]):
    """Images that show their own number, moved by the random numbers of torch, numpy and Python."""

    def __init__(self, count: int = 40) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = torch.full(SHAPE, i / 255)
        image[0, 0, 0] = torch.rand(())
        image[0, 0, 1] = float(np.random.rand())
        image[0, 0, 2] = random.random()
        return image, i % CLASSES


class Own(pl.LightningDataModule):
    """By default a shuffled training set and two further parts."""

    classes, shape = CLASSES, SHAPE

    def __init__(self, workers: int = 0, shuffle_val: bool = False) -> None:
        super().__init__()
        self.workers, self.shuffle_val = workers, shuffle_val

    def train_dataloader(self) -> Any:
        return DataLoader(Items(), batch_size=8, shuffle=True, num_workers=self.workers)

    def val_dataloader(self) -> Any:
        return DataLoader(Items(16), batch_size=8, shuffle=self.shuffle_val)

    def test_dataloader(self) -> Any:
        return DataLoader(Items(16), batch_size=8)


class Watch(Callback):
    """Notes which images each training batch has, and their random pixels."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        images = batch[0] if isinstance(batch, (list, tuple)) else batch["image"]
        SEEN.append((images[:, 0, [5, 0, 0, 0], [5, 0, 1, 2]] * 1e6).round().long().flatten().tolist())


def module_run(folder: Path, kind: type = Own, *words: str, **options: Any) -> dict[str, Any]:
    node = {"_target_": f"{__name__}.{kind.__name__}", **options}
    words = (*QUIET, "~data", f"+data={json.dumps(node).replace(chr(34), '')}", *words)
    run = trained(folder, *words)
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("options", [{}, {"shuffle_val": True}], ids=["", "shuffled validation"])
def test_scratch_and_kd_get_equal_batches_from_a_custom_module(tmp_path: Path, options: dict[str, bool]) -> None:
    watch = f"+callbacks.watch._target_={__name__}.Watch"
    seen = {}
    for name, words in {
        "scratch": ("teacher=none", "objective=ce"),
        "kd": ("teacher=mlp", "objective=kd", "teacher.min_accuracy=0", "student.width=8"),
    }.items():
        (tmp_path / name).mkdir()
        module_run(tmp_path / name, Own, *words, watch, "epochs=2", **options)
        seen[name] = SEEN[-10:]  # those of the student, after its teacher's
        SEEN.clear()
    assert seen["scratch"] == seen["kd"]
    assert seen["kd"][:5] != seen["kd"][5:]


def passes(module: Any, epochs: int, disturb: Callable[[], Any]) -> list[list[list[int]]]:
    """What a module's training loader gives in each epoch."""
    found = []
    loader = module.train_dataloader()
    for epoch in range(epochs):
        module.trainer = type("Trainer", (), {"current_epoch": epoch, "overfit_batches": 0})()
        disturb()
        given = []
        for images, _ in loader:
            torch.rand(3), np.random.rand(), random.random()
            given.append((images[:, 0, 0, :6] * 1e6).long().tolist())
        found.append(given)
    return found


class Generator(Own):
    """Its loaders share a generator of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def train_dataloader(self) -> Any:
        return DataLoader(Items(), batch_size=8, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> Any:
        return DataLoader(Items(16), batch_size=8, shuffle=True, generator=self.generator)


@pytest.mark.parametrize("kind", [Own, Generator])
def test_the_order_and_the_augmentation_are_a_function_of_seed_and_epoch(kind: type) -> None:
    first = adopted(kind(), 3)
    calm = passes(first, 2, lambda: None)
    other = adopted(kind(), 3)

    def disturb() -> None:
        torch.manual_seed(99)
        list(other.val_dataloader())

    assert passes(other, 2, disturb) == calm
    assert calm[0] != calm[1]
    if kind is Own:
        assert passes(adopted(kind(), 4), 1, lambda: None)[0] != calm[0]


def test_loader_does_not_change_global_random_state() -> None:
    module = adopted(Own(), 0)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    list(module.train_dataloader())
    assert torch.equal(torch.rand(2), expected)


class Splits(Own):
    """Draws its split when it is set up, which Lightning does for training and for the test."""

    def setup(self, stage: str) -> None:
        self.order = torch.randperm(40).tolist()


def test_a_split_drawn_in_setup_is_the_same_at_each_call() -> None:
    module, other = adopted(Splits(), 0), adopted(Splits(), 0)
    found = []
    for each in (module, module, other):
        torch.rand(1)
        each.setup("fit")
        found.append(each.order)
    assert found[0] == found[1] == found[2]


class Dicts(Own):
    """Batches are dicts with names, and validation has two loaders."""

    classes, names = CLASSES, ("a", "b", "c", "d")

    def __init__(self) -> None:
        super().__init__()

    def part(self) -> Any:
        rows = [{"image": i / 255 * torch.ones(SHAPE), "label": "abcd"[i % 4], "path": f"{i}.png"} for i in range(40)]
        return DataLoader(rows, batch_size=16)  # type: ignore[arg-type]

    train_dataloader = test_dataloader = part

    def val_dataloader(self) -> Any:
        return [self.part(), self.part()]


def test_dict_batches_with_names_and_several_validation_loaders_train(tmp_path: Path) -> None:
    summary = module_run(tmp_path, Dicts, "teacher=none", "objective=ce", "epochs=1")
    assert summary["training"]["steps"] == 3
    assert summary["training"]["images_per_s"] > 0
    assert summary["data"]["classes"] == 4


class Sparse(pl.LightningDataModule):
    """Says ``num_classes`` and no shape; its last training batch is short, and batches carry paths."""

    num_classes = CLASSES

    def part(self) -> Any:
        images = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8).float() / 255
        return DataLoader([(images[i], i % CLASSES, f"{i}.png") for i in range(40)], batch_size=16)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = part


def test_shape_and_classes_are_inferred(tmp_path: Path) -> None:
    module = adopted(Sparse(), 0)
    assert (module.classes, module.shape) == (4, (3, 8, 8))
    summary = module_run(tmp_path, Sparse, "teacher=none", "objective=ce", "epochs=2")
    assert summary["data"]["shape"] == [3, 8, 8]
    assert [len(batch.labels) for batch in batches(adopted(Sparse(), 0), "test")] == [16, 16, 8]


def test_images_per_second_counts_the_images_that_were_seen(tmp_path: Path) -> None:
    for accumulate in (1, 4):
        words = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=100", "data.batch_size=15")
        words += ("teacher=none", "objective=ce", "epochs=2", f"trainer.accumulate_grad_batches={accumulate}")
        run = trained(tmp_path / str(accumulate), *QUIET, *words)
        training = json.loads((run / "summary.json").read_text())["training"]
        assert training["steps"] == {1: 12, 4: 4}[accumulate]  # 6 batches, the last window of 2
        assert images_of(run) == 2 * 6 * 15
        assert training["images_per_s"] == pytest.approx(2 * 6 * 15 / training["seconds"], rel=0.2)
    assert module_run(tmp_path, Sparse, "teacher=none", "objective=ce", "epochs=2")["training"]["images_per_s"] > 0
    assert images_of(tmp_path / "run") == 80


def images_of(run: Path) -> int:
    """The count of training images that a run's last checkpoint carries."""
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    return int(next(each["images"] for each in state.values() if "images" in each))


class Lists(Own):
    """Loaders are plain lists of batches."""

    def train_dataloader(self) -> Any:
        return [(torch.rand(8, *SHAPE), torch.arange(8) % 4) for _ in range(3)]

    val_dataloader = test_dataloader = train_dataloader


class Stream(IterableDataset[Any]):
    """Samples without end, as far as anybody can tell."""

    def __iter__(self) -> Iterator[Any]:
        for i in range(24):
            yield torch.full(SHAPE, i / 255), i % CLASSES


class Endless(Own):
    """A training set without length."""

    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=8)


class Unlabelled(Own):
    """Training images without labels."""

    def train_dataloader(self) -> Any:
        return DataLoader(torch.rand(40, *SHAPE), batch_size=8)  # type: ignore[arg-type]


class Partly(Own):
    """Some labels are not known, in each part."""

    def part(self) -> Any:
        labels = torch.arange(40) % 5 - 1
        return DataLoader(TensorDataset(torch.rand(40, *SHAPE), labels), batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = part


class Soft(Own):
    """Labels are probabilities, in each part."""

    def part(self) -> Any:
        return DataLoader(TensorDataset(torch.rand(40, *SHAPE), torch.rand(40, 4).softmax(1)), batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = part


class NoTestLabels(Own):
    """A test set without labels."""

    def test_dataloader(self) -> Any:
        return DataLoader(torch.rand(40, *SHAPE), batch_size=8)  # type: ignore[arg-type]


GOOD = {
    "a list of batches": (Lists, ("teacher=none", "objective=ce"), 3),
    "no length": (Endless, ("teacher=none", "objective=ce", "+trainer.max_steps=3"), 3),
    "no training labels": (
        Unlabelled,
        ("teacher=mlp", "teacher.checkpoint=${student_file}", "objective=kd", "teacher.min_accuracy=0"),
        5,
    ),
    "some labels unknown": (Partly, ("teacher=mlp", "objective=kd", "teacher.min_accuracy=0"), 5),
    "labels are probabilities": (Soft, ("teacher=mlp", "objective=kd", "teacher.min_accuracy=0"), 5),
}


@pytest.mark.parametrize("kind", GOOD)
def test_supported_batch_structures(kind: str, tmp_path: Path) -> None:
    module, words, steps = GOOD[kind]
    file = tmp_path / "teacher.safetensors"
    if any("student_file" in word for word in words):
        from kd.models.weights import save

        save(kd.models["mlp"](classes=4, shape=[1, 8, 8]), file)
        words = tuple(word.replace("${student_file}", str(file)) for word in words)
    summary = module_run(tmp_path, module, *words, "epochs=1")
    assert summary["training"]["steps"] == steps
    assert all(np.isfinite(value) for value in summary["metrics"]["test"].values())


def test_unlabelled_test_set_has_no_accuracy(tmp_path: Path) -> None:
    words = ("teacher=mlp", "objective=kd", "teacher.min_accuracy=0", "epochs=1")
    scores = module_run(tmp_path, NoTestLabels, *words)["metrics"]["test"]
    assert set(scores) == {"agreement", "kl"}


OWN = """
import numpy as np, torch
import pytorch_lightning as pl
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

class Rows(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(1, 8, 8), 0)] * 40)

class Module(pl.LightningDataModule):
    classes, shape = 4, (1, 8, 8)
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "one class":
            self.classes = 1
        if kind == "twice":
            self.names = ("a", "b", "a", "c")
        if kind == "names":
            self.names = ("a", "b")
        if kind == "last":
            self.shape = (8, 8, 1)
        if kind == "mean":
            self.mean = self.std = (0.5, 0.5, 0.5)
        if kind == "no classes":
            self.classes = None
    def rows(self, kind):
        image, label = torch.rand(1, 8, 8), 1
        rows = []
        for i in range(40):
            image, label = torch.rand(1, 8, 8), i % 4
            if kind == "normalised": image = image * 4 - 2
            if kind == "bytes": image = image * 255
            if kind == "sizes": image = torch.rand(1, 8 + i % 2, 8)
            if kind == "pillow": image = Image.new("L", (8, 8))
            if kind == "hundred": label = -100
            if kind == "high": label = i % 5
            if kind == "word": label = "ant"
            if kind == "several": label = torch.tensor([1, 1, 0, 0])
            if kind == "unknown": label = -1
            rows.append((image, label))
        return rows
    def loader(self, kind):
        if kind == "length":
            return DataLoader(Rows(), batch_size=8)
        return DataLoader(self.rows(kind), batch_size=8)
    def train_dataloader(self):
        if self.kind == "loaders":
            return [self.loader(""), self.loader("")]
        if self.kind == "iterator":
            return iter(self.loader(""))
        if self.kind == "unlabelled":
            return DataLoader(torch.rand(40, 1, 8, 8), batch_size=8)
        return self.loader("" if self.kind.startswith("val ") else self.kind)
    def val_dataloader(self):
        return self.loader(self.kind[4:] if self.kind.startswith("val ") else "")
    test_dataloader = val_dataloader
"""
BAD = {
    "normalised": "the train images are float from -",
    "val normalised": "the val images are float from -",
    "bytes": "divide them by their largest possible value (255 for bytes)",
    "sizes": "the data's images are of several shapes, [1, 8, 8] and [1, 9, 8]",
    "pillow": "samples with a Image, which cannot be batched",
    "hundred": "the data has the label -100, expected 0 to 3; an unknown label is -1",
    "high": "the data has the label 4, expected 0 to 3",
    "word": "the train labels are names, for example 'ant'",
    "several": "the train labels [B, 4] are multi-hot",
    "unlabelled": "the training batches have no labels, but every term of the objective needs them",
    "val unknown": "no validation image has a label",
    "loaders": "train_dataloader returns 2 loaders",
    "iterator": "train_dataloader returns an iterator, which can be read once",
    "length": "the training data has no length, so the schedule has no end: set trainer.max_steps=N",
    "one class": "the data has 1 class, but classification needs at least 2",
    "twice": "names has 'a' twice",
    "names": "Module has 4 classes and 2 names",
    "last": "looks like [H, W, C]",
    "mean": "Module.mean has 3 numbers for images of 1 channels",
    "no classes": "Module must define `classes`",
}


@pytest.mark.parametrize("kind", BAD)
def test_unsupported_batch_structures_give_a_one_line_error(
    kind: str, complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_modules.py").write_text(OWN)
    (tmp_path / "conf/data").mkdir(parents=True)
    node = {"_target_": "own_modules.Module", "kind": kind}
    (tmp_path / "conf/data/own.yaml").write_text(yaml.safe_dump(node))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("--config-dir", "conf", "data=own", "teacher=none", "objective=ce", "epochs=1", *QUIET, "logger=none")
    assert BAD[kind] in complain(*words)


def test_terms_that_need_every_label_are_refused_when_one_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a label for every sample, but some samples have none"):
        module_run(tmp_path, Partly, "teacher=mlp", "objective=dkd", "teacher.min_accuracy=0", "epochs=1")


def test_the_teacher_is_measured_by_soft_and_by_partly_known_labels(tmp_path: Path) -> None:
    words = ("teacher=mlp", "objective=kd", "teacher.min_accuracy=0", "epochs=1")
    for kind in (Soft, Partly):
        (tmp_path / kind.__name__).mkdir()
        assert 0 <= module_run(tmp_path / kind.__name__, kind, *words)["teacher"]["accuracy"] <= 1


def test_validation_interval_beyond_the_run_gives_a_one_line_error(complain: Complain, tmp_path: Path) -> None:
    words = ("teacher=none", "objective=ce", "epochs=1", "logger=none", *QUIET)
    line = complain("+trainer.val_check_interval=100", *words)
    assert "trainer.val_check_interval=100 is more than the 20 batches of an epoch: set it to 20" in line
    line = complain("+trainer.val_check_interval=15", "trainer.limit_train_batches=10", *words)
    assert "more than the 10 batches of an epoch" in line
    (tmp_path / "own_modules.py").write_text(OWN)
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/own.yaml").write_text("_target_: own_modules.Module\nkind: plain\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        line = complain("--config-dir", "conf", "data=own", "+trainer.val_check_interval=9", *words)
    assert "trainer.val_check_interval=9 is more than the 5 batches of an epoch" in line


PLUS = {
    "trainer.fast_dev_run=true": "set +trainer.fast_dev_run=true",
    "trainer.val_check_interval=0.5": "set +trainer.val_check_interval=0.5",
    "fast_dev_run=true": "set +trainer.fast_dev_run=true",
    "precision=bf16-mixed": "set trainer.precision=bf16-mixed",
    "callbacks.best.save_top_k=3": "set +callbacks.best.save_top_k=3",
    "trainer.fast_dev_rn=true": "did you mean +trainer.fast_dev_run?",
    "trainer.max_epoch=3": "did you mean trainer.max_epochs?",
}


@pytest.mark.parametrize("word", PLUS)
def test_missing_plus_error_suggests_the_override(word: str, complain: Complain) -> None:
    assert PLUS[word] in complain(word)


@pytest.mark.slow
def test_the_order_of_a_module_with_workers_and_several_processes(kd_train: Run, tmp_path: Path) -> None:
    (tmp_path / "own_modules.py").write_text(OWN.replace("batch_size=8)", "batch_size=8, shuffle=True)", 2))
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/own.yaml").write_text("_target_: own_modules.Module\nkind: plain\n")
    words = ("--config-dir", "conf", "data=own", "teacher=none", "objective=ce", "epochs=2", "logger=none", *QUIET)
    done = kd_train(*words, "trainer.devices=2", "trainer.accelerator=cpu", "hydra.run.dir=run", fresh=True)
    assert done.returncode == 0, done.stderr
    training = json.loads((tmp_path / "run/summary.json").read_text())["training"]
    assert training["steps"] == 6  # 40 images, 20 for each process, in batches of 8
    assert training["images_per_s"] > 0


def test_custom_collate_function_with_pillow_images() -> None:
    class Pillow(Own):
        shape = (3, 8, 8)

        def test_dataloader(self) -> Any:
            rows = [(Image.new("RGB", (8, 8), (i, 0, 0)), i % 4) for i in range(5)]
            return DataLoader(rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]

    found = list(batches(adopted(Pillow(), 0), "test"))
    assert [batch.images[:, 0, 0, 0].tolist() for batch in found] == [[0, 1], [2, 3], [4]]


class Late(Own):
    """Its names are known after setup only, and an attribute has the name of one of kd's own."""

    val, account = "validation set", "mine"

    def setup(self, stage: str) -> None:
        self.known = ("a", "b", "c", "d")

    @property
    def names(self) -> tuple[str, ...]:
        return self.known


def test_a_custom_module_has_the_defaults_of_image_data_for_what_it_does_not_define() -> None:
    module = Late()
    data = image_data(module)
    assert (data.classes, data.shape, data.lightning) == (CLASSES, SHAPE, module)
    assert (data.names, data.mean, data.start, data.batch_size, data.counts()) == (None, None, None, None, {})
    assert (data.val, data.account(), data.memory) == (None, [], None)
    data.start = 8
    module.setup("fit")
    assert (module.start, data.names) == (8, ("a", "b", "c", "d"))
    assert image_data(data) is data


def test_a_trainer_without_a_data_module_reads_the_defaults() -> None:
    data = data_of(pl.Trainer(logger=False, enable_checkpointing=False))
    assert (data.names, data.checked, data.batch_size, data.describe()) == (None, False, None, {})
