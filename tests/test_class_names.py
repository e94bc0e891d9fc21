"""Class names: saved in the run folder, and matched by name where a student or a teacher is used on other data."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import HERE, Complain
from torchvision.io import write_png
from trained import trained

import kd
from kd.data.folder import Folder
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.export import export
from kd.run_folder import classes
from kd.train.assemble import teacher as teacher_of_config

COLOURS = {"ant": 0, "bee": 1, "cow": 2}  # the channel that is bright


def pictures(
    root: Path, names: Mapping[str, str] | None = None, per_class: int = 12, *, parts: tuple[str, ...]
) -> Path:
    """Class folders in which each class has its colour; ``names`` gives folders to classes."""
    draw = torch.Generator().manual_seed(len(str(root)))
    for part in parts:
        for name, like in (names or {name: name for name in COLOURS}).items():
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                picture = torch.randint(0, 90, (3, 8, 8), generator=draw)
                picture[COLOURS[like]] += 150
                write_png(picture.to(torch.uint8), str(root / part / name / f"{i}.png"))
    return root


FAST = ("student=mlp", "epochs=6", "data=folder", "data.workers=0", "data.crop=centre", "data.batch_size=4")
SCRATCH = (*FAST, "teacher=none", "objective=ce", "optim.lr=0.05")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on three classes."""
    folder = tmp_path_factory.mktemp("named")
    pictures(folder / "pets", parts=("train", "test"))
    return trained(folder, *SCRATCH, f"data.root={folder / 'pets'}")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "run")


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_class_names_are_saved_and_loaded(run: Path) -> None:
    assert summary_of(run)["data"]["names"] == ["ant", "bee", "cow"]
    assert kd.load(run).classes == ("ant", "bee", "cow")
    assert summary_of(run)["metrics"]["test"]["acc"] == 1


def test_run_folder_without_class_names_loads(tmp_path: Path) -> None:
    assert kd.load(shutil.copytree(HERE / "formats/1/done", tmp_path / "done")).classes is None


@pytest.mark.parametrize(
    "names", [3, ["ant"], ["ant", 2, "cow"], "abc"], ids=["number", "too-few", "not-all-words", "word"]
)
def test_invalid_class_names_are_ignored(run: Path, names: Any) -> None:
    summary = summary_of(run)
    summary["data"]["names"] = names
    (run / "summary.json").write_text(json.dumps(summary))
    assert kd.load(run).classes is None


# ---------------------------------------------------------------- kd-evaluate and kd-export


def test_a_renamed_class_is_refused_by_evaluate_and_export(run: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "other", {"ant": "ant", "bee": "bee", "crow": "cow"}, parts=("train", "test"))
    for command in (evaluate, export):
        with pytest.raises(InputError, match=r"lacks 1 of the data's 3 classes, first 'crow'; did you mean 'cow'"):
            command(str(run), data={"root": str(root)})


def test_unknown_class_is_refused(run: Path, tmp_path: Path, complain: Complain) -> None:
    root = pictures(tmp_path / "other", {"ant": "ant", "bee": "bee", "wasp": "cow"}, parts=("train", "test"))
    line = complain(f"run={run}", f"data.root={root}", command="evaluate")
    assert "the student of the run lacks 1 of the data's 3 classes, first 'wasp'" in line
    assert "(available: ant, bee, cow)" in line
    assert not (run / "evaluation").exists()


@pytest.mark.parametrize("parts", [("test",), ("val",), ("Testing",), ("",)], ids=["test", "val", "Testing", "no-part"])
def test_test_only_folder_with_a_missing_class_is_scored_by_name(
    run: Path, tmp_path: Path, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    root = pictures(tmp_path / "other", {"bee": "bee", "cow": "cow"}, parts=parts)
    found = evaluate(str(run), data={"root": str(root)}, out=str(tmp_path / "out"))
    assert (found["metrics"]["acc"], found["data"]["images"]) == (1, 24)
    assert [(one["name"], one["images"]) for one in found["classes"]] == [("ant", 0), ("bee", 12), ("cow", 12)]
    assert "the data lacks 1 of the student's classes: ant" in capsys.readouterr().out
    assert any("lacks 1 of the student's classes" in note for note in found["data"]["notes"])


def test_a_test_part_named_as_a_csv_file_is_scored(run: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "other", parts=("all",))
    (root / "labels.csv").write_text("".join(f"all/{name}/{i}.png,{name}\n" for name in COLOURS for i in range(3)))
    found = evaluate(str(run), data={"root": str(root), "test": "labels.csv"})
    assert (found["metrics"]["acc"], found["data"]["images"]) == (1, 9)


def test_export_accepts_a_test_only_folder(run: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "other", {"bee": "bee", "cow": "cow"}, parts=("test",))
    card = export(str(run), format="torchscript", data={"root": str(root)})
    assert card["check"]["images"] == 24
    assert card["output"]["classes"] == ["ant", "bee", "cow"]
    with pytest.raises(InputError, match="has no val part, only a test part"):
        evaluate(str(run), data={"root": str(root)}, part="val")


def test_undivided_data_is_evaluated_on_the_split_of_the_run(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pets", parts=("",))
    run = trained(tmp_path, *SCRATCH, f"data.root={root}")
    counts = summary_of(run)["data"]
    assert evaluate(str(run))["data"]["images"] == counts["test"] < 36
    root.rename(tmp_path / "moved")
    assert evaluate(str(run), data={"root": str(tmp_path / "moved")})["data"]["images"] == counts["test"]
    other = evaluate(str(run), data={"root": str(pictures(tmp_path / "others", parts=("",)))})
    assert other["data"]["images"] == 36
    assert any("is not the run's own data: all images are evaluated" in note for note in other["data"]["notes"])


def test_reordered_classes_are_matched_by_name(tmp_path: Path) -> None:
    names = {"10": "ant", "2": "bee", "9": "cow"}  # as numbers of a csv file: 2, 9, 10; as folders: 10, 2, 9
    root = pictures(tmp_path / "pets", names, parts=("train", "test"))
    for part in ("train", "test"):
        rows = "".join(f"{part}/{name}/{i}.png,{name}\n" for name in names for i in range(12))
        (root / f"{part}.csv").write_text(rows)
    tables = ("data.train=train.csv", "data.test=test.csv")
    run = trained(tmp_path, *SCRATCH, f"data.root={root}", *tables)
    assert summary_of(run)["data"]["names"] == ["2", "9", "10"]
    assert summary_of(run)["metrics"]["test"]["acc"] == 1
    found = evaluate(str(run), data={"train": None, "test": None}, out=str(tmp_path / "out"))
    assert found["metrics"]["acc"] == 1
    assert "the data has the student's classes in another order; they are matched by name" in found["data"]["notes"]
    assert [row[i] for i, row in enumerate(found["confusion"])] == [12, 12, 12]


def test_other_data_defaults_to_the_image_size_of_the_student(run: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "other", parts=("test",))
    node = {"_target_": "kd.data.folder.Folder", "root": str(root), "size": None, "workers": 0}
    assert evaluate(str(run), data=node)["metrics"]["acc"] == 1


def test_numeric_class_names_are_matched(tmp_path: Path) -> None:
    run = trained(tmp_path, "data=digits", "student=mlp", "teacher=none", "objective=ce", "epochs=1")
    assert summary_of(run)["data"]["names"] == list("0123456789")
    letters = {"_target_": "kd.data.sources.synthetic", "shape": [1, 8, 8], "classes": 10, "val": 0.1}
    assert evaluate(str(run), data=letters)["data"]["images"] == 500
    with pytest.raises(InputError, match="data has 4 classes, but the run's student has 10"):
        evaluate(str(run), data={**letters, "classes": 4})


# ---------------------------------------------------------------- teachers


class Named:
    """What a data module says of its classes."""

    shape, mean, std = (3, 8, 8), [0.5] * 3, [0.25] * 3

    def __init__(self, *names: str) -> None:
        self.names, self.classes = names, len(names)


def matched(run: Path, data: Any, **more: Any) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text())
    return classes.matched({**config["student"], "checkpoint": str(run), **more}, "teacher", data)


def test_teacher_with_reordered_classes_is_reordered(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        node = matched(run, Named("cow", "ant", "bee"))
    assert (node["classes"], node["outputs"]) == ([2, 0, 1], 3)
    assert "are in another order there; matched by name: cow is column 2, ant is column 0" in caplog.text
    frozen = teacher_of_config({"teacher": node}, Named("cow", "ant", "bee"))
    assert frozen is not None
    images = torch.rand(4, 3, 8, 8)
    expected = kd.load(run)(images)[:, [2, 0, 1]]
    torch.testing.assert_close(frozen(kd.Batch(images, torch.zeros(4)))[""], expected)


def test_teacher_with_more_classes_is_restricted_to_those_of_the_data(run: Path) -> None:
    assert matched(run, Named("cow", "ant"))["classes"] == [2, 0]


def test_teacher_of_the_same_classes_is_unchanged(run: Path) -> None:
    for node in (matched(run, Named("ant", "bee", "cow")), matched(run, object())):
        assert node.get("classes") is None
    assert matched(run, Named("cow", "ant", "bee"), classes=[0, 1, 2])["classes"] == [0, 1, 2]


@pytest.mark.parametrize("place", ["", "student.safetensors", "checkpoints/best.ckpt"])
def test_teacher_without_a_class_of_the_data_is_refused(run: Path, place: str) -> None:
    with pytest.raises(InputError, match=r"teacher: the teacher in .* lacks 1 of .* first 'wasp'"):
        matched(run, Named("ant", "bee", "wasp"), checkpoint=str(run / place))


def test_duplicate_class_names_cannot_be_matched() -> None:
    assert classes.columns(["a", "a"], ["a", "a"], "it") == [0, 1]
    with pytest.raises(InputError, match="the class 'a' occurs twice"):
        classes.columns(["a", "a", "b"], ["b", "a"], "it")


def test_student_of_fewer_classes_learns_from_matching_columns(run: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "some", {"bee": "bee", "cow": "cow"}, parts=("train", "test"))
    teacher = ("teacher=mlp", f"teacher.checkpoint={run}", "teacher.cache=off", "objective=kd")
    student = trained(tmp_path / "kd", *FAST, "epochs=1", *teacher, f"data.root={root}")
    told = summary_of(student)["teacher"]
    assert (told["classes"], told["accuracy"]) == ([1, 2], 1)
    assert evaluate(str(student))["metrics"]["teacher_acc"] == 1


def test_class_names_come_from_folder_names(tmp_path: Path) -> None:
    data = Folder(str(pictures(tmp_path, parts=("train", "test"))), workers=0, batch_size=4)
    assert classes.names_of(data) == ("ant", "bee", "cow")
