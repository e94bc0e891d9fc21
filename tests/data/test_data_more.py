"""Data of one's own: what a newcomer's files, arrays and modules may get wrong, and what is then said or put right."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import Complain
from PIL import Image
from small_runs import trained
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.io import write_png

import kd
from kd import InputError
from kd.data.arrays import adapted
from kd.data.custom import adopted
from kd.data.folder import Folder
from kd.data.listing import listed
from kd.evaluate import evaluate
from kd.evaluate.loaded_run import batches
from kd.run_folder import classes

COLOURS = {"ant": 0, "bee": 1, "cow": 2}  # the channel that is bright
FAST = ("student=mlp", "student.width=16", "epochs=4", "optim.lr=0.05", "teacher=none", "objective=ce")
FOLDER = (*FAST, "data=folder", "data.workers=0", "data.crop=centre", "data.batch_size=4")


def pictures(root: Path, names: tuple[str, ...] = tuple(COLOURS), per_class: int = 12) -> Path:
    """Class folders in which each class has its colour."""
    draw = torch.Generator().manual_seed(len(str(root)))
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            picture = torch.randint(0, 90, (3, 8, 8), generator=draw)
            picture[COLOURS[name]] += 150
            write_png(picture.to(torch.uint8), str(root / name / f"{i}.png"))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on three classes of pictures."""
    folder = tmp_path_factory.mktemp("run")
    pictures(folder / "pets" / "train"), pictures(folder / "pets" / "test")
    return trained(folder, *FOLDER, f"data.root={folder / 'pets'}")


def test_class_folders_without_parts_are_tested_as_a_whole_by_a_relative_path_too(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "photos", ("ant", "cow"), per_class=5)
    monkeypatch.chdir(tmp_path)
    result = evaluate(str(run), {"root": "photos"}, out="out")
    assert result["data"]["images"] == 10
    assert any("all images are evaluated" in note for note in result["data"]["notes"])


def test_pictures_that_are_read_otherwise_than_in_the_run_are_a_warning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(pictures(tmp_path / "photos" / "test").parent)
    whole = {"_target_": "kd.data.folder.Folder", "root": root, "workers": 0, "background": "black"}
    notes = evaluate(str(run), whole, out=str(tmp_path / "out"))["data"]["notes"]
    line = "WARNING: data.background=black, but the run had data.background=white"
    assert line in notes
    assert line in capsys.readouterr().out
    assert not any("WARNING" in note for note in evaluate(str(run), {"root": root})["data"]["notes"])


def bars(order: str = "abcd", count: int = 200) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images 1x8x8 with a bright bar whose place is that of the class among ``abcd``; labels in ``order``."""
    kinds = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(0))
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    for image, kind in zip(images, kinds.tolist()):
        image[0, 2 * kind : 2 * kind + 2] += 150
    return images.to(torch.uint8), torch.tensor([order.index("abcd"[kind]) for kind in kinds]), tuple(order)


def arrays(order: str = "abcd") -> kd.Arrays:
    images, labels, names = bars(order)
    return kd.Arrays(train=(images, labels), test=(images, labels), names=names)


def arrays_run(folder: Path, order: str, *words: str) -> Path:
    return trained(folder, "~data", f"+data={{_target_: {__name__}.arrays, order: {order}, batch_size: 16}}", *words)


NETWORKS = {"mlp": ["student=mlp", "student.width=16"], "deit_tiny": ["student=deit_tiny", "student.depth=1"]}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_student_that_starts_from_a_run_knows_the_classes_by_name(tmp_path: Path, network: str) -> None:
    words = (*NETWORKS[network], "teacher=none", "objective=ce")
    one = arrays_run(tmp_path / "one", "abcd", *words, "epochs=2")
    two = arrays_run(tmp_path / "two", "dbca", *words, "epochs=1", "optim.lr=1e-9", f"student.checkpoint={one}")
    images = bars()[0][:20]
    expected, found = kd.load(one)(images), kd.load(two)(images)
    assert kd.load(two).classes == tuple("dbca")
    torch.testing.assert_close(found, expected[:, [3, 1, 2, 0]], atol=1e-4, rtol=1e-4)


def test_a_student_that_starts_from_a_run_on_other_classes_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = arrays_run(tmp_path / "one", "abcd", *FAST)
    data = type("Other", (), {"names": tuple("abcx")})()
    student = kd.load(one)
    before = {key: value.clone() for key, value in student.net.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        classes.realign(student, {"checkpoint": str(one)}, data)
    assert "its classifier was trained on other classes (a, b, c, d)" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in student.net.state_dict().items())


class Bars(pl.LightningDataModule):
    """A module of a user's own, whose parts are drawn in ``setup``."""

    classes = 4
    mean: Any = None
    std: Any = None

    def setup(self, stage: str) -> None:
        images, labels, _ = bars()
        self.parts = torch.utils.data.random_split(TensorDataset(images, labels), [120, 40, 40])

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=16, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1], batch_size=16)


def test_statistics_may_be_tensors_or_arrays() -> None:
    class Colour(Bars):
        mean, std, shape = torch.tensor([0.5, 0.4, 0.3]), np.array([0.5, 0.25, 0.5]), (3, 8, 8)

    module = adopted(Colour(), 0)
    assert (module.mean, module.std) == (pytest.approx([0.5, 0.4, 0.3]), [0.5, 0.25, 0.5])


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (0.5, [0.2], r"Stated.mean must have a number for each channel: \[0.5\]"),
        ([0.5], [0.2, 0.2], "Stated.std has 2 numbers for images of 1 channels"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(mean: Any, std: Any, message: str) -> None:
    module = type("Stated", (Bars,), {"mean": mean, "std": std})()
    with pytest.raises(InputError, match=message):
        adopted(module, 0)


@pytest.mark.parametrize(("mean", "std"), [([120.0], [60.0]), ([0.5], [60.0]), ([-1.0], [0.5])])
def test_statistics_of_pixels_in_0_to_255_are_refused(complain: Complain, mean: Any, std: Any) -> None:
    line = complain(
        "student=mlp",
        "teacher=none",
        "objective=ce",
        f"+student.mean={mean}".replace(" ", ""),
        f"+student.std={std}".replace(" ", ""),
    )
    assert "mean and std are those of pixels in [0, 1]" in line
    assert "divide what is in 0..255 by 255" in line


def test_a_part_that_a_module_does_not_have_is_refused_by_its_name() -> None:
    with pytest.raises(InputError, match="part=test: the data has no such part, as Bars has no test_dataloader"):
        next(batches(adopted(Bars(), 0), "test"))


# ---------------------------------------------------------------- csv files and folders


def written(root: Path, rows: list[str], name: str = "labels.csv") -> Path:
    (root / name).write_text("\n".join(rows) + "\n")
    return root


def test_a_column_of_parts_in_a_csv_file_gives_each_part_its_own_rows(tmp_path: Path) -> None:
    pictures(tmp_path, per_class=10)
    parts = ["train"] * 6 + ["Test"] * 2 + ["valid"] * 2
    rows = [f"{name}/{i}.png,{name},{parts[i]}" for name in COLOURS for i in range(10)]
    written(tmp_path, ["path,label,split", *rows])
    found = listed(str(tmp_path), **dict.fromkeys(("train", "val", "test"), "labels.csv"))
    numbers = {part: {Path(file.path).stem for file in getattr(found, part)} for part in ("train", "val", "test")}
    assert numbers == {"train": set("012345"), "val": set("89"), "test": set("67")}
    alone = listed(str(tmp_path), train="labels.csv")
    assert len(alone.train) == 18
    assert any("rows of other parts, for data.val= and data.test= (12)" in note for note in alone.notes)


def test_a_csv_file_without_a_row_of_the_part_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [f"{name}/{i}.png,{name},{'val' if i % 3 else 'train'}" for name in COLOURS for i in range(6)]
    written(tmp_path, ["path,label,split", *rows])
    with pytest.raises(InputError, match="has no row of the test part: its column split has train, val"):
        listed(str(tmp_path), train="labels.csv", test="labels.csv")


@pytest.mark.parametrize("value", ["train", "fold1", ""])
def test_a_column_that_gives_no_parts_is_passed_over(tmp_path: Path, value: str) -> None:
    pictures(tmp_path)
    written(tmp_path, ["path,label,split", *(f"{name}/{i}.png,{name},{value}" for name in COLOURS for i in range(6))])
    assert len(listed(str(tmp_path), train="labels.csv", test="labels.csv").test) == 18


def test_the_label_minus_one_in_a_csv_file_is_not_known(tmp_path: Path) -> None:
    pictures(tmp_path)
    names = {"ant": 2, "bee": 10, "cow": 1}
    rows = [f"{name}/{i}.png,{-1 if i > 7 else names[name]}" for name in COLOURS for i in range(12)]
    data = Folder(str(written(tmp_path, ["path,label", *rows])), train="labels.csv", workers=0, batch_size=4)
    assert data.names == ("1", "2", "10")
    assert data.unlabelled
    assert data.counts()["train"] - data.counts()["labelled"] == 12
    assert (data.train_labels >= -1).all()
    assert all(file.label >= 0 for part in ("val", "test") for file in data.parts[part].files)
    with pytest.raises(InputError, match=r"have different classes, first \['-1'\]"):
        Folder(str(tmp_path), train="labels.csv", test="labels.csv", workers=0, batch_size=4)


def test_class_folders_that_look_like_parts_are_a_warning(tmp_path: Path) -> None:
    for part in ("images_test", "images_train"):
        pictures(tmp_path / part)
    notes = " ".join(listed(str(tmp_path)).notes)
    assert "WARNING: images_test/, images_train/ are used as classes, but each contains ant/, bee/, cow/" in notes
    assert "set data.train=images_train" in notes
    assert "WARNING" not in " ".join(listed(str(pictures(tmp_path / "plain"))).notes)


# ---------------------------------------------------------------- arrays and modules


def test_classes_without_a_training_image_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    images, labels, names = bars()
    some = labels < 3
    with caplog.at_level(logging.WARNING):
        adapted(kd.Arrays(train=(images[some], labels[some]), test=(images, labels), names=names))
    assert "1 of 4 classes have no training image, first 'd'" in caplog.text
    caplog.clear()
    words = [names[label] for label in labels]
    with caplog.at_level(logging.WARNING):
        adapted(kd.Arrays(train=(images, words), test=(images, [f"{word} " for word in words])))
    assert "4 of 8 classes have no training image, first 'a '" in caplog.text


@pytest.mark.parametrize("names", [None, tuple("abcd")])
def test_labels_that_are_not_a_number_are_refused(names: Any) -> None:
    images, labels, _ = bars()
    lacking = labels.double().numpy()
    lacking[3] = np.nan
    with pytest.raises(InputError, match="float64 that are not integers; an unknown label is -1"):
        adapted(kd.Arrays(train=(images, lacking), test=(images, labels), names=names))


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(5),
    "numpy": lambda: np.random.default_rng(5),
    "old numpy": lambda: np.random.RandomState(5),
    "Python": lambda: random.Random(5),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_parts_that_a_module_draws_by_its_own_generator_are_the_same_at_each_setup(kind: str) -> None:
    class Drawn(Bars):
        def __init__(self) -> None:
            super().__init__()
            self.generator = GENERATORS[kind]()

        def setup(self, stage: str) -> None:
            made: Any = self.generator
            if isinstance(made, torch.Generator):
                self.drawn = torch.randperm(50, generator=made).tolist()
            else:
                self.drawn = list(range(50))
                made.shuffle(self.drawn)
            super().setup(stage)

    plain = Drawn()
    plain.setup("fit")
    module = adopted(Drawn(), 0)
    for stage in ("fit", "test"):
        module.setup(stage)
        assert module.drawn == plain.drawn


class Nothing(Bars):
    def test_dataloader(self) -> Any:
        return None


def test_a_module_that_gives_no_loader_for_a_part_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="test_dataloader returns no loader: leave the method out"):
        trained(tmp_path, *FAST, "~data", f"+data._target_={__name__}.Nothing")


@pytest.mark.parametrize(
    "names", [{0: "a", 1: "b", 2: "c", 3: "d"}, {"d": 3, "a": 0, "c": 2, "b": 1}, {3: "d", 2: "c", 1: "b", 0: "a"}]
)
def test_names_by_their_numbers_and_numbers_by_their_names(names: dict[Any, Any]) -> None:
    images, labels, _ = bars()
    assert adapted(kd.Arrays(train=(images, labels), test=(images, labels), names=names)).names == tuple("abcd")
    module = type("Known", (Bars,), {"classes": names})()
    assert adopted(module, 0).names == tuple("abcd")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"a", "b", "c", "d"}, "names must be an ordered list of the class names, got a set"),
        ("abcd", "names must be an ordered list of the class names, got a str"),
        ({1: "a", 2: "b", 3: "c", 4: "d"}, "names must give each class a number from 0 to 3"),
        ({"a": "x", "b": "y"}, "names must give each class a number from 0 to 1"),
    ],
)
def test_names_without_a_clear_order_are_refused(names: Any, message: str) -> None:
    images, labels, _ = bars()
    with pytest.raises(InputError, match=message):
        adapted(kd.Arrays(train=(images, labels), test=(images, labels), names=names))


def test_names_in_one_part_and_numbers_in_the_other_are_refused() -> None:
    images, labels, names = bars()
    words = [names[label] for label in labels]
    with pytest.raises(InputError, match="the labels of one part are names, those of the other numbers"):
        adapted(kd.Arrays(train=(images, words), test=(images, labels)))
    assert adapted(kd.Arrays(train=(images, words), test=(images, labels), names=names)).names == names


@pytest.mark.parametrize("mode", ["P", "CMYK", "HSV"])
def test_pillow_images_of_palettes_and_other_colours_are_taken_as_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((8, 8, 3), (200, 40, 120), dtype=np.uint8))
    given = [image.convert(mode)] * 20
    labels = [0, 1] * 10
    images = adapted(kd.Arrays(train=(given, labels), test=(given, labels))).train[0]
    assert list(images.shape) == [20, 3, 8, 8]
    assert (images[0, :, 0, 0].int() - torch.tensor([200, 40, 120])).abs().max() <= 25


class Grouped(Bars):
    """Batches with a third tensor that is a group and no position."""

    far = 1

    def setup(self, stage: str) -> None:
        images, labels, _ = bars()
        groups = torch.arange(len(images)) % 3 * self.far
        self.parts = torch.utils.data.random_split(TensorDataset(images, labels, groups), [120, 40, 40])


class Far(Grouped):
    far = 1000


CRD = ("student=resnet8", "teacher=resnet8", "teacher.min_accuracy=0", "objective=crd", "objective.crd.samples=120")


def test_a_third_tensor_that_repeats_itself_is_a_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, *FAST, "epochs=1", "~data", f"+data._target_={__name__}.Grouped")
    assert "read as positions in the training set, but 16 images have 3 distinct values" in caplog.text


def test_a_third_tensor_beyond_the_training_set_is_refused_by_crd(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="position in the training set, from 0 to 119, but the third of a batch holds"):
        trained(tmp_path, *CRD, "epochs=1", "~data", f"+data._target_={__name__}.Far")


# ---------------------------------------------------------------- pictures that are not in files


@pytest.mark.parametrize("given", [np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8), None, b"cat.png", 3])
def test_what_is_no_picture_is_refused_by_predict_in_one_line(run: Path, given: Any) -> None:
    with pytest.raises(
        InputError, match=r"predict takes a path, a Pillow image or a list of them, got a \w+; for images"
    ):
        kd.load(run).predict(given)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_a_dark_image_of_many_bits_in_memory_is_refused_by_predict(run: Path, dtype: Any) -> None:
    grey = np.full((8, 8), 170)
    with pytest.raises(InputError, match="has 16 bits with no value above 170"):
        kd.load(run).predict(Image.fromarray(grey.astype(dtype)))
    assert kd.load(run).predict(Image.fromarray((grey * 257).astype(dtype))).label in COLOURS
