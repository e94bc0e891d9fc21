"""Pictures in files: layouts, csv files, links, hidden files, damage, and the messages about them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain, Run
from torchvision.io import write_png

from kd.compare.plan import check_same
from kd.data import content
from kd.data.folder import Folder
from kd.data.listing import listed
from kd.data.option_defaults import batch_of, share_of
from kd.data.split import stratified
from kd.errors import InputError


def picture(path: Path, side: int = 10) -> Path:
    """A picture whose bytes are a function of its path, so that no two are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(int(hashlib.sha256(str(path).encode()).hexdigest()[:8], 16))
    write_png(torch.randint(0, 256, (3, side, side + 2), generator=draw).to(torch.uint8), str(path))
    return path


def tree(root: Path, *parts: str, per_class: int = 6, names: Sequence[str] = ("ant", "bee")) -> Path:
    for part in parts or ("",):
        for name in names:
            for i in range(per_class):
                picture(root / part / name / f"{i}.png")
    return root


def folder(root: Path, **options: Any) -> Folder:
    return Folder(str(root), **{"size": 8, "batch_size": 2, "workers": 0, **options})


def named(data: Folder, part: str) -> list[str]:
    return [os.path.relpath(file.path, data.root) for file in data.parts[part].files]


def said(data: Folder) -> str:
    return "\n".join(data.account())


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "val", "test"),
        ("Train", "valid", "TEST"),
        ("TRAIN", "validation", "Test"),
        ("training", "VAL", "testing"),
        ("Training", "dev", "test"),
    ],
    ids="-".join,
)
def test_train_val_and_test_folders_in_any_spelling(tmp_path: Path, parts: tuple[str, ...]) -> None:
    data = folder(tree(tmp_path, *parts))
    assert data.counts() == {"train": 12, "val": 12, "test": 12}
    for part, place in zip(("train", "val", "test"), parts):
        assert {name.split("/")[0] for name in named(data, part)} == {place}


@pytest.mark.parametrize("other", ["val", "test", "Valid"])
def test_one_part_beside_train_is_the_test_part_and_validation_is_held_out(tmp_path: Path, other: str) -> None:
    data = folder(tree(tmp_path, "train", other))
    assert {name.split("/")[0] for name in named(data, "test")} == {other}
    assert {name.split("/")[0] for name in named(data, "val")} == {"train"}
    assert data.counts() == {"train": 10, "val": 2, "test": 12}
    assert ("the val part is used as the test set" in said(data)) == (other != "test")


@pytest.mark.parametrize("val", [0.34, "test"])
def test_unused_validation_part_is_reported(tmp_path: Path, val: float | str) -> None:
    data = folder(tree(tmp_path, "train", "val", "test"), val=val)
    assert "the val part is not used" in said(data)
    assert not any(name.startswith("val/") for part in data.parts for name in named(data, part))


def test_parts_are_named_by_options(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/all", "fold1", "held")
    data = folder(root, train="a/all", val="fold1", test="held")
    assert [named(data, part)[0] for part in data.parts] == ["a/all/ant/0.png", "fold1/ant/0.png", "held/ant/0.png"]
    alone = folder(root, train="fold1")
    assert {name.split("/")[0] for part in alone.parts for name in named(alone, part)} == {"fold1"}


def test_class_folders_at_the_top_are_divided_by_class_and_seed(tmp_path: Path) -> None:
    data = folder(tree(tmp_path, per_class=20), split_seed=3)
    assert data.counts() == {"train": 26, "val": 6, "test": 8}
    for part in data.parts:
        labels = [file.label for file in data.parts[part].files]
        assert labels.count(0) == labels.count(1)
    parts = [set(named(data, part)) for part in data.parts]
    assert len(set.union(*parts)) == 40
    again, other = folder(tmp_path, split_seed=3), folder(tmp_path, split_seed=4)
    assert [set(named(again, part)) for part in again.parts] == parts
    assert set(named(other, "test")) != parts[2]
    assert "no test part: 0.2 of each class is drawn for testing" in said(data)
    assert "no validation part: 0.2 of each class is held out for validation" in said(data)


def test_train_folder_without_others_is_divided(tmp_path: Path) -> None:
    assert folder(tree(tmp_path, "train", per_class=20)).counts() == {"train": 26, "val": 6, "test": 8}
    assert folder(tmp_path, test=0.5, val=0.1).counts() == {"train": 18, "val": 2, "test": 20}


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    assert folder(tree(tmp_path, names=("car", "plane", "train"))).names == ("car", "plane", "train")


def test_unlabelled_test_pictures_are_ignored_and_reported(tmp_path: Path) -> None:
    tree(tmp_path, "train", "val")
    picture(tmp_path / "test/images/0.png")
    data = folder(tmp_path)
    assert {name.split("/")[0] for name in named(data, "test")} == {"val"}
    assert "test/ is not used: all images are in images/, which is not a class" in said(data)


def test_other_folders_beside_the_parts_are_reported(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test", "extra")
    assert "not used: extra/" in said(folder(tmp_path))


UNKNOWN = {
    "nothing": ([], {}, "contains nothing"),
    "pictures without folders": (["a.png", "b.png"], {}, "a.png, b.png: neither train/CLASS/*"),
    "a csv file": (["labels.csv", "pictures/a.png"], {}, "data.train=labels.csv"),
    "a folder in a folder": (["pets/train/ant/a.png"], {}, "did you mean data.root="),
    "parts within classes": (["ant/train/a.png", "bee/train/a.png"], {}, "parts within classes"),
    "two names of one part": (["train/ant/a.png", "Train/ant/a.png"], {}, "select one with data.train=Train"),
    "no train": (["val/ant/a.png", "test/ant/a.png"], {}, "has no train part; it contains test/, val/"),
    "train without classes": (["train/a.png", "val/a.png"], {}, "train has no class folders with images"),
    "a name that is not there": (["train/ant/a.png"], {"val": "vall"}, "data.val=vall is neither a folder nor a csv"),
    "a name that is near": (["train/ant/a.png"], {"test": "trian"}, "did you mean 'train'?"),
    "another class": (["train/ant/a.png", "train/bee/a.png", "val/Ant/a.png"], {}, "does 'Ant' mean 'ant'?"),
    "an empty class": (["train/ant/a.png", "train/bee/a.gif"], {}, "train/bee has no images: it contains a.gif"),
    "a share of 1": (["train/ant/a.png"], {"test": 1}, "test must be a fraction in (0, 1)"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_layout_error_lists_contents_and_options(tmp_path: Path, case: str) -> None:
    files, options, line = UNKNOWN[case]
    for name in files:
        picture(tmp_path / name) if name.endswith("png") else (tmp_path / name).parent.mkdir(
            parents=True, exist_ok=True
        )
        (tmp_path / name).touch()
    with pytest.raises(InputError) as caught:
        folder(tmp_path, **options)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_present_only_in_training_is_reported(tmp_path: Path) -> None:
    tree(tmp_path, "train", names=("ant", "bee", "cow"))
    tree(tmp_path, "test")
    data = folder(tmp_path)
    assert data.names == ("ant", "bee", "cow")
    assert "classes without an image in test (1), first cow" in said(data)


# ---------------------------------------------------------------- classes


def test_class_order_is_that_of_torchvision_and_is_printed_with_counts(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test", names=[str(i) for i in range(1, 13)], per_class=4)
    data = folder(tmp_path)
    assert data.names == ("1", "10", "11", "12", "2", "3", "4", "5", "6", "7", "8", "9")
    rows = [line.split() for line in data.account()[:13]]
    assert rows[0] == ["class", "train", "val", "test"]
    assert [row[0] for row in rows[1:]] == list(data.names)
    assert all(row[1:] == ["3", "1", "4"] for row in rows[1:])


def test_many_classes_are_summarised(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test", names=[f"c{i:02d}" for i in range(40)], per_class=2)
    picture(tmp_path / "test/c07/more.png")
    assert "classes: c00, c01, c02, c03, c04, ..., c39" in said(folder(tmp_path))
    assert "test: 2 (c00) to 3 (c07) images per class" in said(folder(tmp_path))


def test_class_names_with_spaces_and_any_script(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test", names=("a b", "été", "狗", "x\x1b[2J"))
    assert folder(tmp_path).names == ("a b", "x\\x1b[2J", "été", "狗")


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    for part in ("train", "test"):
        place = os.path.join(os.fsencode(tmp_path), part.encode())
        os.rename(os.path.join(place, b"ant"), os.path.join(place, b"caf\xe9"))
        os.rename(os.path.join(place, b"bee/0.png"), os.path.join(place, b"bee/\xff.png"))
    data = folder(tmp_path, val="test")
    assert data.names == ("bee", "caf\\xe9")
    assert len(list(data.test_dataloader())) == 6
    json.dumps(data.describe()).encode()
    said(data).encode()


def test_only_picture_of_a_class_is_used_for_training(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    picture(tmp_path / "train/cow/0.png")
    data = folder(tmp_path, val=0.5)
    assert named(data, "train")[-1] == "train/cow/0.png"
    assert 2 not in [file.label for file in data.parts["val"].files]
    assert "classes with a single training image, which is not held out: 1" in said(data)


def test_one_picture_per_class_cannot_be_held_out(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test", per_class=1)
    with pytest.raises(InputError, match=r"val=0\.1 holds out no image, as each class has only one training image"):
        folder(tmp_path, val=0.1)
    assert folder(tmp_path, val="test").counts() == {"train": 2, "val": 2, "test": 2}


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_split_preserves_at_least_one_picture_per_class(count: int, share: float) -> None:
    labels = torch.arange(3).repeat_interleave(count)
    rest, held_out = stratified(labels, share, 5)
    assert torch.cat([rest, held_out]).sort().values.tolist() == list(range(3 * count))
    assert labels[rest].bincount(minlength=3).min() >= 1
    assert labels[held_out].bincount(minlength=3).min() >= min(1, count - 1)


# ---------------------------------------------------------------- what is left out


def test_hidden_files_and_notebook_checkpoints_are_ignored_and_counted(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    for place in (".ipynb_checkpoints", "ant/.ipynb_checkpoints", "__MACOSX", ".cache/x", "bee/@eaDir"):
        picture(tmp_path / "train" / place / "0-checkpoint.png")
    picture(tmp_path / "train/ant/._0.png")
    data = folder(tmp_path, val="test")
    assert (data.names, data.counts()["train"]) == (("ant", "bee"), 12)
    assert "skipped: hidden files and folders (6), first train/" in said(data)


def test_other_formats_and_pictures_outside_classes_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    for name in ("a.gif", "b.GIF", "c.jfif", "d.avif", "notes.txt", "README"):
        (tmp_path / "train/ant" / name).write_bytes(b"x")
    picture(tmp_path / "train/loose.png")
    picture(tmp_path / "train/ant/UPPER.PNG")
    lines = said(folder(tmp_path, val="test"))
    for line in (
        "skipped: .gif files (2), first train/ant/a.gif",
        "skipped: .jfif files (1), first train/ant/c.jfif",
        "skipped: .avif files (1)",
        "skipped: .txt files (1)",
        "skipped: files without an extension (1), first train/ant/README",
        "skipped: images outside the class folders (1), first train/loose.png",
    ):
        assert line in lines
    assert "UPPER" not in lines


def test_pipes_and_devices_are_skipped_and_reported(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    os.mkfifo(tmp_path / "train/ant/pipe.png")
    (tmp_path / "train/ant/zero.png").symlink_to("/dev/zero")
    data = folder(tmp_path, val="test")
    assert data.counts()["train"] == 12
    assert "skipped: pipes, sockets and devices (2), first train/ant/pipe.png" in said(data)


LINKS = {
    "to the folder above": ("train/ant/up", "..", "links to a parent folder"),
    "to itself": ("train/ant/loop", ".", "links to a parent folder"),
    "to the top": ("train/ant/top", "../..", "links to a parent folder"),
    "to a sibling class": ("train/ant/other", "../bee", "links into the class bee of train"),
    "to a sibling part": ("train/ant/other", "../../test/bee", "links into the class bee of test"),
    "of a class to another": ("train/cow", "bee", "links to the class bee"),
    "of a class to the part": ("train/cow", ".", "links to a parent folder"),
    "of a picture to another class": ("train/ant/x.png", "../bee/0.png", "links to images of the class bee of train"),
    "of a picture to itself twice": ("train/ant/x.png", "0.png", "links to images of the class ant of train"),
}


@pytest.mark.parametrize("link", LINKS)
def test_links_neither_relabel_nor_multiply_pictures(tmp_path: Path, link: str) -> None:
    tree(tmp_path, "train", "test")
    before = listed(str(tmp_path))
    place, target, why = LINKS[link]
    (tmp_path / place).symlink_to(target)
    found = listed(str(tmp_path))
    assert (found.train, found.test, found.names) == (before.train, before.test, before.names)
    assert f"skipped: {why} (1), first {place}" in found.notes


def test_data_sets_made_of_links_are_read(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", "ant", "bee", names=("",))
    root = tmp_path / "pets"
    for part in ("train", "test"):
        (root / part / "bee").mkdir(parents=True)
        (root / part / "ant").symlink_to(store / "ant")
        for i in range(3):
            (root / part / "bee" / f"{i}.png").symlink_to(os.path.relpath(store / f"bee/{i}.png", root / part / "bee"))
        (root / part / "bee/more").symlink_to(tree(tmp_path / f"more-{part}", names=("x",)) / "x")
    data = folder(root, val="test")
    assert [file.label for file in data.parts["train"].files] == [0] * 6 + [1] * 9


def test_class_inside_the_target_of_another_link_is_separate(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", names=("cat", "dog"))
    picture(store / "fish.png")
    root = tree(tmp_path / "pets", "test", names=("any", "cat"))
    (root / "train").mkdir()
    (root / "train/any").symlink_to(store)
    (root / "train/cat").symlink_to(store / "cat")
    found = listed(str(root))
    assert [file.label for file in found.train] == [0] * 7 + [1] * 6
    assert "skipped: folders of the class cat of train (1), first train/any/cat" in found.notes


# ---------------------------------------------------------------- damage and doubles


def test_damaged_pictures_are_skipped_on_request_and_counted(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    (tmp_path / "train/ant/0.png").write_bytes(b"")
    (tmp_path / "train/bee/1.png").write_bytes((tmp_path / "train/bee/1.png").read_bytes()[:60])
    (tmp_path / "test/ant/2.png").unlink()
    (tmp_path / "test/ant/2.png").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"(ant/0|bee/1)\.png cannot be decoded"):
        list(folder(tmp_path, val="test").train_dataloader())
    data = folder(tmp_path, val="test", damaged="skip")
    assert data.counts() == {"train": 10, "val": 11, "test": 11}
    assert "skipped: damaged images of train (2), first " in said(data)
    assert "skipped: damaged images of test (1)" in said(data)
    assert len(list(data.train_dataloader())) == 5
    with pytest.raises(InputError, match=r"unknown data\.damaged 'skp'; did you mean 'skip'"):
        folder(tmp_path, damaged="skp")


def test_ambiguous_pictures_are_refused_when_the_data_set_is_opened(tmp_path: Path) -> None:
    from PIL import Image

    tree(tmp_path, "train", "test")
    for path in (tmp_path / "train").rglob("*.png"):
        Image.fromarray(torch.full((4, 4), 900, dtype=torch.int32).numpy().astype("u2")).save(path)
    with pytest.raises(InputError, match=r"data\.white=4095"):
        folder(tmp_path, damaged="refuse")
    assert folder(tmp_path, white=1023).counts()["test"] == 12


def test_duplicates_across_parts_or_classes_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, "train", "val", "test")
    for i in range(3):
        shutil.copy(tmp_path / f"train/ant/{i}.png", tmp_path / f"test/ant/copy{i}.png")
    shutil.copy(tmp_path / "train/ant/0.png", tmp_path / "train/bee/again.png")
    lines = said(folder(tmp_path))
    assert "images of test that are also in train: 3 of 15, first " in lines
    assert "images of train under two classes (1), first " in lines
    assert "of val that are also in" not in lines


# ---------------------------------------------------------------- content


def inverted(path: Path) -> None:
    """Other pixels in a file of the same size and time."""
    before = path.stat()
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_changed_pictures_of_equal_size_change_the_fingerprint(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    before = folder(tmp_path, val="test")
    seen = before.train_sha256(), before.describe()["sha256"]
    assert folder(tmp_path, val="test").train_sha256() == seen[0]
    inverted(tmp_path / "test/bee/3.png")
    after = folder(tmp_path, val="test")
    assert after.train_sha256() == seen[0]
    assert after.describe()["sha256"] != seen[1]
    inverted(tmp_path / "train/bee/3.png")
    assert folder(tmp_path, val="test").train_sha256() != seen[0]


def test_large_files_are_fingerprinted_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "train", "test")
    monkeypatch.setattr(content, "WHOLE", 100)
    monkeypatch.setattr(content, "BLOCK", 16)
    seen = folder(tmp_path, val="test").train_sha256()
    assert folder(tmp_path, val="test").train_sha256() == seen
    inverted(tmp_path / "train/bee/3.png")
    assert folder(tmp_path, val="test").train_sha256() != seen


def test_a_second_start_reads_no_file_that_has_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "pets", "train", "test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "SLOW", 0.0)
    monkeypatch.setattr(content, "RACY", 0)
    read: list[str] = []
    original = content.contents
    monkeypatch.setattr(content, "contents", lambda file: read.append(file.path) or original(file))
    first = folder(root, val="test").describe()
    assert len(read) == 24
    time.sleep(0.01)
    read.clear()
    assert folder(root, val="test").describe() == first
    assert read == []
    inverted(root / "train/ant/2.png")
    assert folder(root, val="test").describe() != first
    assert [Path(path).name for path in read] == ["2.png"]


@pytest.mark.parametrize("text", ["", "[1", "[1, 2]", '{"a": 3}'])
def test_damaged_digest_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    root = tree(tmp_path / "pets", "train", "test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = folder(root, val="test").describe()
    path = content.DigestCache(str(root)).path
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert folder(root, val="test").describe() == expected


# ---------------------------------------------------------------- csv files


def table(root: Path, text: str, name: str = "labels.csv") -> Path:
    tree(root, "pictures", names=("x",), per_class=12)
    (root / name).write_text(text, encoding="utf-8")
    return root


def rows(form: str, head: str = "", labels: Sequence[str] = ("ant", "bee")) -> str:
    return head + "".join(form.format(i=i, label=labels[i % len(labels)]) for i in range(12))


TABLES = {
    "no header": rows("pictures/x/{i}.png,{label}\n"),
    "a header": rows("pictures/x/{i}.png,{label}\n", "file,label\n"),
    "the label first": rows("{label},pictures/x/{i}.png\n", "label,file\n"),
    "more columns": rows("{i},pictures/x/{i}.png,{label},0.5\n", "id,image,class,score\n"),
    "quotes": rows('"pictures/x/{i}.png","{label}"\n', '"file","label"\n'),
    "semicolons": rows("pictures/x/{i}.png;{label}\n"),
    "tabs": rows("pictures/x/{i}.png\t{label}\n"),
    "a byte order mark": "\ufeff" + rows("pictures/x/{i}.png,{label}\n", "file,label\n"),
    "backslashes": rows("pictures\\x\\{i}.png,{label}\r\n", "file,label\r\n"),
    "a leading dot": rows("./pictures/x/{i}.png,{label}\n"),
    "no extensions": rows("pictures/x/{i},{label}\n", "id,label\n"),
    "blanks and empty lines": rows(" pictures/x/{i}.png , {label} \n\n"),
    "rows twice": rows("pictures/x/{i}.png,{label}\n") * 2,
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_csv_file_of_path_and_label_is_read(tmp_path: Path, kind: str) -> None:
    data = folder(table(tmp_path, TABLES[kind]), train="labels.csv", val=0.2, test=0.2)
    assert data.names == ("ant", "bee")
    found = {Path(file.path).stem: file.label for part in data.parts.values() for file in part.files}
    assert found == {str(i): i % 2 for i in range(12)}
    assert ("skipped: duplicate rows (12)" in said(data)) == (kind == "rows twice")


def test_csv_with_absolute_paths_or_paths_below_its_own_folder(tmp_path: Path) -> None:
    table(tmp_path, "")
    (tmp_path / "all.csv").write_text(rows(f"{tmp_path}/pictures/x/{{i}}.png,{{label}}\n"))
    (tmp_path / "pictures.csv").write_text(rows("x/{i}.png,{label}\n"))
    for name in ("all.csv", "pictures.csv"):
        assert folder(tmp_path, train=name).counts()["train"] == 8


def test_train_val_and_test_may_each_be_a_csv_file_or_a_folder(tmp_path: Path) -> None:
    table(tmp_path, rows("pictures/x/{i}.png,{label}\n"))
    (tmp_path / "val.csv").write_text("pictures/x/1.png,bee\n")
    tree(tmp_path, "held", names=("bee", "ant"))
    assert folder(tmp_path, train="labels.csv", val="val.csv", test="held").counts() == {
        "train": 12,
        "val": 1,
        "test": 12,
    }


def test_labels_that_are_numbers_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    labels = ["10", "2.0", "0", "9"]
    data = folder(table(tmp_path, rows("pictures/x/{i}.png,{label}\n", labels=labels)), train="labels.csv", val="test")
    assert data.names == ("0", "2", "9", "10")


TORN = {
    "an absent picture": (
        "pictures/x/0.png,ant\npictures/x/99.png,bee\n",
        r"1 images .* first pictures/x/99\.png \(l",
    ),
    "no picture at all": ("a.png,ant\nb.png,bee\n", "has no existing image below"),
    "no label": ("pictures/x/0.png,ant\npictures/x/1.png,\n", "line 2 has no label"),
    "a short row": ("pictures/x/0.png,ant\npictures/x/1.png\n", "line 2 has no label"),
    "two labels": ("pictures/x/0.png,ant\npictures/x/0.png,bee\n", "two labels, lines 1 and 2: 'ant' and 'bee'"),
    "one column": ("pictures/x/0.png\n", "has one column"),
    "unclear columns": ("pictures/x/0.png,a,b\n", "has 3 columns"),
    "nothing": ("", "is empty"),
    "an open quote": ('pictures/x/0.png,"ant\n', "cannot be read as csv"),
    "a null": ("pictures/x/0.png,ant\n\0,bee\n", "labels.csv"),
}


@pytest.mark.parametrize("case", TORN)
def test_ambiguous_csv_files_are_refused(tmp_path: Path, case: str) -> None:
    text, line = TORN[case]
    with pytest.raises(InputError, match=line) as caught:
        folder(table(tmp_path, text), train="labels.csv", test="pictures")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- scaled options and the command


def test_default_options_are_scaled_to_the_data(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        for i in range(80):
            picture(tmp_path / name / f"{i}.png", side=70)
    data = Folder(str(tmp_path), workers=0)
    assert data.resolved == {"size": 64, "batch_size": 8}
    assert (data.shape, data.batch_size) == ((3, 64, 64), 8)
    assert "derived from the data: data.size=64 data.batch_size=8" in said(data)
    assert Folder(str(tmp_path), size=48, batch_size=4).resolved == {}
    assert [batch_of(n) for n in (20, 900, 5_000, 1_281_167)] == [8, 32, 256, 256]
    assert [share_of(n) for n in (900, 5_000, 20_000, 1_281_167)] == [0.2, 0.2, 0.05, 0.02]


def test_run_reports_parts_and_classes_and_saves_chosen_options(kd_train: Run, tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "Train", "valid", per_class=20)
    picture(root / "Train/ant/.ipynb_checkpoints/0.png")
    done = kd_train(
        *("data=folder", "data.root=pets", "student=resnet8", "teacher=none", "objective=ce", "epochs=1"),
        *("data.workers=0", "trainer.enable_progress_bar=false", "hydra.run.dir=run", "logger=none"),
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "data: 32 train, 8 val, 40 test; 2 classes, images 3x10x10",
        "data: ant       16    4    20",
        "data: skipped: hidden files and folders (1), first Train/ant/.ipynb_checkpoints",
        "data: the val part is used as the test set",
        "data: 8 validation images: val/acc has a standard error of 14.1 points at 80 % accuracy",
    ):
        assert line in done.stdout
    kept = json.loads((tmp_path / "run/summary.json").read_text())["data"]
    assert (kept["config"]["size"], kept["config"]["batch_size"]) == (10, 8)
    assert kept["names"] == ["ant", "bee"]


def test_command_line_error_for_an_unknown_layout(tmp_path: Path, complain: Complain) -> None:
    picture(tmp_path / "pets/0.png")
    line = complain("data=folder", f"data.root={tmp_path / 'pets'}")
    assert "contains 0.png: neither train/CLASS/*" in line
    assert "data.train=, data.val= and data.test=" in line


def test_links_at_the_top_neither_relabel_nor_multiply(tmp_path: Path) -> None:
    tree(tmp_path)
    before = listed(str(tmp_path))
    for name, target in (("loop", "."), ("up", ".."), ("cow", "bee"), ("ant/up", "..")):
        (tmp_path / name).symlink_to(target)
    after = listed(str(tmp_path))
    assert (after.train, after.names) == (before.train, before.names)


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    (tmp_path / "test/ant/0.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(InputError, match=r"ant/0\.png cannot be decoded: .* a git-LFS pointer"):
        list(folder(tmp_path, val="test").test_dataloader())


def shard(path: Path, labels: Sequence[int]) -> None:
    with tarfile.open(path, "w") as archive:
        for i, label in enumerate(labels):
            for kind, written in (("png", picture(path.parent / f"raw/{i}.png").read_bytes()), ("cls", b"%d" % label)):
                about = tarfile.TarInfo(f"{i}.{kind}")
                about.size = len(written)
                archive.addfile(about, io.BytesIO(written))


def test_shards_of_train_val_and_test(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 4), ("test", 6)):
        shard(tmp_path / f"{part}-0.tar", [i % 2 for i in range(count)])
    (tmp_path / "._train-0.tar").write_bytes(b"x")
    assert folder(tmp_path).counts() == {"train": 8, "val": 4, "test": 6}


def test_shard_classes_in_one_part_are_reported_and_huge_labels_refused(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", [0, 1] * 4)
    shard(tmp_path / "test-0.tar", [0, 1, 2])
    assert "classes without an image in train (1), first 2" in said(folder(tmp_path))
    shard(tmp_path / "test-0.tar", [0, 10**9])
    with pytest.raises(InputError, match=r"has the label 1,000,000,000 in a \.cls"):
        folder(tmp_path)


def test_comparison_uses_options_derived_from_the_data(tmp_path: Path) -> None:
    there = {"data": {"size": 32, "val": None}, "teacher": {"classes": [1, 0], "outputs": 2}}
    (tmp_path / "config.yaml").write_text(json.dumps(there))
    check_same({"data": {"size": None, "val": None}, "teacher": {"classes": None, "outputs": None}}, tmp_path)
    with pytest.raises(InputError, match=r"data\.size=32, not 64"):
        check_same({**there, "data": {"size": 64, "val": None}}, tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    locked = tmp_path / "train/ant"
    locked.chmod(0)
    try:
        if os.access(locked, os.R_OK):
            pytest.skip("whoever runs this may read everything")
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            folder(tmp_path)
    finally:
        locked.chmod(0o755)
