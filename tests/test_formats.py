"""The official file formats, made small, read whole, and damaged: a one-line error names the file and the fault."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Complain, Run
from PIL import Image
from test_data import make_cifar, make_folder, make_idx, write_idx

import kd
from kd.data.decode import File, decode
from kd.data.folder import Folder
from kd.errors import InputError

TEN = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def make_cifar10(root: Path) -> Path:
    make_cifar(root / "cifar-10-batches-py", b"labels", TEN, ("batches.meta", b"label_names"))
    return root / "cifar-10-batches-py"


def make_cifar100(root: Path) -> Path:
    make_cifar(root / "cifar-100-python", b"fine_labels", ["train", "test"], ("meta", b"fine_label_names"))
    return root / "cifar-100-python"


def rewritten(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def pickled(path: Path, change: Callable[[dict[bytes, Any]], Any]) -> None:
    content = pickle.loads(path.read_bytes(), encoding="bytes")
    path.write_bytes(pickle.dumps(change(content) or content, protocol=2))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


# what befalls any file
ANY: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: rewritten(path, b""),
    "cut": lambda path: rewritten(path, path.read_bytes()[: path.stat().st_size // 2]),
    "a page": lambda path: rewritten(path, b"<html>404 Not Found</html>" * 40),
    "zeros": lambda path: rewritten(path, bytes(5000)),
    "noise": lambda path: rewritten(path, np.random.default_rng(0).bytes(5000)),
    "absent": Path.unlink,
    "a folder": directory,
}
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
IDX: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{name: (IMAGES, damage) for name, damage in ANY.items()},
    "of another type": (IMAGES, lambda path: rewritten(path, gzip.compress(b"\0\0\x0d\3" + bytes(9000)))),
    "too long": (IMAGES, lambda path: rewritten(path, gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))),
    "below zero": (IMAGES, lambda path: rewritten(path, gzip.compress(b"\0\0\x08\3" + b"\xff" * 12))),
    "a bit": (IMAGES, lambda path: rewritten(path, path.read_bytes()[:-8] + bytes(8))),
    "labels": (IMAGES, lambda path: shutil.copy(path.parent / LABELS, path)),
    "label out of range": (LABELS, lambda path: write_idx(path, np.full(12, 10))),
    "labels too few": (LABELS, lambda path: write_idx(path, np.arange(11) % 10)),
    "no labels": (LABELS, lambda path: write_idx(path, np.arange(0))),
    "test images of another size": ("t10k-images-idx3-ubyte.gz", lambda path: write_idx(path, np.zeros((12, 20, 20)))),
}


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("damage", IDX)
def test_damaged_idx_files_give_a_one_line_error(tmp_path: Path, name: str, damage: str) -> None:
    make_idx(tmp_path)
    file, harm = IDX[damage]
    harm(tmp_path / file)
    refused(lambda: kd.data[name](root=str(tmp_path)), file.removesuffix(".gz"))


def refused(read: Callable[[], Any], file: str) -> None:
    with pytest.raises(InputError) as caught:
        read()
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


CIFAR: dict[str, Callable[[Path], Any]] = {
    **ANY,
    "no dictionary": lambda path: rewritten(path, pickle.dumps([1, 2, 3])),
    "no pixels": lambda path: pickled(path, lambda d: d.pop(b"data") is None),
    "no labels": lambda path: pickled(path, lambda d: d.update({k: [] for k in d if k.endswith(b"labels")})),
    "labels too few": lambda path: pickled(path, lambda d: d.update({k: [1] for k in d if k.endswith(b"labels")})),
    "unknown label": lambda path: pickled(path, lambda d: d.update({k: [99] * 20 for k in d if k.endswith(b"labels")})),
    "labels of text": lambda path: pickled(
        path, lambda d: d.update({k: ["x"] * 20 for k in d if k.endswith(b"labels")})
    ),
    "a label": lambda path: pickled(path, lambda d: d.update({k: 7 for k in d if k.endswith(b"labels")})),
    "floats": lambda path: pickled(path, lambda d: d.update({b"data": np.zeros((20, 3072))})),
    "grey": lambda path: pickled(path, lambda d: d.update({b"data": np.zeros((20, 1024), np.uint8)})),
    "text": lambda path: pickled(path, lambda d: d.update({b"data": b"pixels"})),
}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("damage", CIFAR)
def test_damaged_cifar_files_give_a_one_line_error(tmp_path: Path, name: str, damage: str) -> None:
    folder = {"cifar10": make_cifar10, "cifar100": make_cifar100}[name](tmp_path)
    file = {"cifar10": "data_batch_3", "cifar100": "test"}[name]
    CIFAR[damage](folder / file)
    refused(lambda: kd.data[name](root=str(tmp_path)), file)


@pytest.mark.parametrize("names", [None, [], "abc", [1, 2]], ids=["none", "empty", "word", "numbers"])
def test_damaged_class_names_are_named(tmp_path: Path, names: Any) -> None:
    meta = make_cifar100(tmp_path) / "meta"
    meta.write_bytes(pickle.dumps({b"fine_label_names": names}))
    refused(lambda: kd.data["cifar100"](root=str(tmp_path)), "meta")


PICTURE: dict[str, Callable[[Path], Any]] = {
    **{name: damage for name, damage in ANY.items() if name not in ("absent", "a folder")},
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to(path.parent / "nowhere")),
    "a bit": lambda path: rewritten(path, path.read_bytes()[:400] + b"\0" * 50 + path.read_bytes()[450:]),
}
TREE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no root": ("", shutil.rmtree),
    "no train": ("train", shutil.rmtree),
    "train is a file": ("train", lambda path: (shutil.rmtree(path), path.write_text("x"))),
    "another class": ("val", lambda path: (path / "ant").rename(path / "cow")),
    "an empty class": ("ant", lambda path: [file.unlink() for file in (path.parent / "train/ant").iterdir()]),
    "no pictures": ("train", lambda path: [file.rename(f"{file}.txt") for file in path.rglob("*.png")]),
}


@pytest.mark.parametrize("damage", PICTURE)
def test_damaged_pictures_give_a_one_line_error(tmp_path: Path, damage: str) -> None:
    make_folder(tmp_path)
    PICTURE[damage](tmp_path / "train/bee/2.png")
    data = Folder(str(tmp_path), size=8, batch_size=1, val="test", workers=0)
    refused(lambda: list(data.train_dataloader()), "bee/2.png")


@pytest.mark.parametrize("damage", TREE)
def test_damaged_folder_trees_give_a_one_line_error(tmp_path: Path, damage: str) -> None:
    make_folder(tmp_path / "pets")
    place, harm = TREE[damage]
    harm(tmp_path / "pets" / place)
    refused(lambda: Folder(str(tmp_path / "pets"), size=8, batch_size=1, workers=0), place or "pets")


CLI = {
    "fashion_mnist": (make_idx, lambda root: root / IMAGES, "cut"),
    "mnist": (make_idx, lambda root: root / LABELS, "noise"),
    "cifar10": (make_cifar10, lambda root: root / "cifar-10-batches-py/data_batch_1", "a page"),
    "cifar100": (make_cifar100, lambda root: root / "cifar-100-python/test", "zeros"),
}


@pytest.mark.parametrize("name", CLI)
def test_damage_ends_a_run_with_one_line_and_exit_code_2(
    name: str, tmp_path: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, place, damage = CLI[name]
    make(tmp_path)
    ANY[damage](place(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert place(tmp_path).name in complain(f"data={name}", f"data.root={tmp_path}")


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_picture_that_a_worker_cannot_decode_ends_a_run_with_one_line(
    kd_train: Run, tmp_path: Path, workers: int
) -> None:
    make_folder(tmp_path / "pets")
    ANY["cut"](tmp_path / "pets/train/bee/2.png")
    done = kd_train(
        *("data=folder", f"data.root={tmp_path / 'pets'}", "data.size=16", "data.batch_size=4", "data.val=test"),
        *(f"data.workers={workers}", "teacher=none", "objective=ce", "epochs=1", "trainer.enable_progress_bar=false"),
    )
    errors = [line for line in done.stderr.splitlines() if "Warning" not in line and not line.startswith("  ")]
    assert done.returncode == 2, done.stderr
    assert len([line for line in errors if line.startswith("error: ")]) == 1
    assert errors[-1].startswith("error: ")
    assert "bee/2.png cannot be decoded" in errors[-1]
    assert "Traceback" not in done.stderr


def encoded(value: int, mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (6, 5)) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "I;16", "P") else (value,) * len(mode)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "value", "expected"),
    [
        ("RGB", "PNG", 40, 40),
        ("RGB", "BMP", 41, 41),
        ("RGB", "PPM", 41, 41),
        ("RGB", "TIFF", 41, 41),
        ("L", "JPEG", 42, 42),
        ("RGBA", "PNG", 43, 219),  # 43 of 255 of it, on white
        ("I;16", "PNG", 44 * 256 + 7, 44),
        ("CMYK", "JPEG", 0, 255),
        ("RGB", "WEBP", 46, 46),
    ],
)
def test_pictures_of_every_kind_become_three_channels(
    tmp_path: Path, mode: str, kind: str, value: int, expected: int
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"before" + encoded(value, mode, kind) + b"after")
    image = decode(File(str(path), 0, 6, path.stat().st_size - 11))
    assert image.shape == (3, 5, 6)
    assert image.dtype == torch.uint8
    assert (image.int() - expected).abs().max() <= 1


def make_svhn(root: Path, labels: np.ndarray | None = None) -> None:
    from scipy.io import savemat

    for part, count in (("train", 30), ("test", 10)):
        images = np.arange(32 * 32 * 3 * count).reshape(count, 3, 32, 32).astype(np.uint8)
        given = (np.arange(count) % 10 + 1)[:, None] if labels is None else labels
        savemat(root / f"{part}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": given})


def test_svhn_is_read(tmp_path: Path) -> None:
    make_svhn(tmp_path)
    found = kd.data["svhn"](root=str(tmp_path))
    assert found.train[0].shape == (30, 3, 32, 32)
    assert found.train[0][0].flatten()[:300].tolist() == [i % 256 for i in range(300)]
    assert found.train[1][:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    with pytest.raises(InputError, match=r"data\.root=.*nowhere.*train_32x32\.mat.*data\.download=true"):
        kd.data["svhn"](root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("damage", [name for name in ANY if name != "absent"])
def test_damaged_svhn_files_are_named(tmp_path: Path, damage: str) -> None:
    make_svhn(tmp_path)
    ANY[damage](tmp_path / "test_32x32.mat")
    refused(lambda: kd.data["svhn"](root=str(tmp_path)), "test_32x32.mat")


def test_svhn_labels_out_of_range_are_named(tmp_path: Path) -> None:
    make_svhn(tmp_path, np.full((30, 1), 11))
    refused(lambda: kd.data["svhn"](root=str(tmp_path)), "train_32x32.mat")


def make_stl10(folder: Path) -> None:
    folder.mkdir()
    for part, count in (("train", 20), ("test", 10), ("unlabeled", 5)):
        images = np.arange(count * 3 * 96 * 96).reshape(count, 3, 96, 96).astype(np.uint8)
        (folder / f"{part}_X.bin").write_bytes(images.tobytes())
        (folder / f"{part}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")


def test_stl10_is_read_with_and_without_its_unlabelled_images(tmp_path: Path) -> None:
    make_stl10(tmp_path / "stl10_binary")
    found = kd.data["stl10"](root=str(tmp_path))
    assert found.train[0].shape == (20, 3, 96, 96)
    assert found.train[0][0, 0, :, 0][:50].tolist() == list(range(50))  # column by column
    assert found.train[1][:3].tolist() == [0, 1, 2]
    more = kd.data["stl10"](root=str(tmp_path / "stl10_binary"), extra=True)
    assert more.train[1][-5:].tolist() == [-1] * 5
    memory = kd.Memory(more, batch_size=5)
    assert memory.counts() == {"train": 15, "val": 10, "test": 10, "labelled": 10}


@pytest.mark.parametrize("file", ["train_X.bin", "test_y.bin", "class_names.txt"])
@pytest.mark.parametrize("damage", ["empty", "cut", "a page", "a folder"])
def test_damaged_stl10_files_are_named(tmp_path: Path, file: str, damage: str) -> None:
    make_stl10(tmp_path / "stl10_binary")
    ANY[damage](tmp_path / "stl10_binary" / file)
    with pytest.raises(InputError, match=r"\.bin|class_names\.txt"):
        kd.data["stl10"](root=str(tmp_path))


def make_tiny(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    for label, name in enumerate(("n01", "n02", "n03")):
        (folder / "train" / name / "images").mkdir(parents=True)
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
        for i in range(4):
            picture = encoded(60 * label + i, kind="JPEG", size=(64, 64))
            (folder / "train" / name / "images" / f"{name}_{i}.JPEG").write_bytes(picture)
    (folder / "val/images").mkdir(parents=True)
    lines = []
    for i in range(6):
        (folder / f"val/images/val_{i}.JPEG").write_bytes(encoded(60 * (i % 3), kind="JPEG", size=(64, 64)))
        lines.append(f"val_{i}.JPEG\tn0{i % 3 + 1}\t0\t0\t44\t62\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet_is_read_into_memory_and_by_workers(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    found = kd.data["tiny_imagenet"](root=str(tmp_path))
    assert found.names == ("n01", "n02", "n03")
    assert found.train[0].shape == (12, 3, 64, 64)
    assert found.test[1].tolist() == [0, 1, 2, 0, 1, 2]
    assert ((found.test[0].float().mean((1, 2, 3)) / 60).round() == found.test[1]).all()
    data = Folder(str(folder), size=64, batch_size=2, val="test", workers=0)
    assert [len(data.parts[part]) for part in ("train", "test")] == [12, 6]
    assert torch.cat([batch.labels for batch in data.test_dataloader()]).tolist() == [0, 1, 2, 0, 1, 2]


TINY: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "cut picture": ("train/n02/images/n02_1.JPEG", ANY["cut"]),
    "absent picture": ("val/images/val_3.JPEG", ANY["absent"]),
    "of another size": ("val/images/val_3.JPEG", lambda path: rewritten(path, encoded(3, size=(65, 64)))),
    "noise": ("val/val_annotations.txt", ANY["noise"]),
    "empty": ("val/val_annotations.txt", ANY["empty"]),
    "unknown class": ("val/val_annotations.txt", lambda path: path.write_text("val_0.JPEG\tn09\t0\n")),
    "no tab": ("val/val_annotations.txt", lambda path: path.write_text("val_0.JPEG n01\n")),
    "no images": ("train", shutil.rmtree),
}


@pytest.mark.parametrize("damage", TINY)
def test_damaged_tiny_imagenet_is_named(tmp_path: Path, damage: str) -> None:
    folder = make_tiny(tmp_path)
    file, harm = TINY[damage]
    harm(folder / file)
    refused(lambda: kd.data["tiny_imagenet"](root=str(tmp_path)), Path(file).name)


def make_shard(path: Path, first: int, count: int) -> None:
    with tarfile.open(path, "w") as shard:
        for i in range(first, first + count):
            parts = {"jpg": encoded(i * 5, kind="JPEG"), "cls": str(i % 3).encode(), "json": b"{}"}
            for kind, content in parts.items():
                about = tarfile.TarInfo(f"{i:06d}.{kind}")
                about.size = len(content)
                shard.addfile(about, io.BytesIO(content))


def make_shards(root: Path) -> None:
    root.mkdir(exist_ok=True)
    make_shard(root / "set-train-000000.tar", 0, 7)
    make_shard(root / "set-train-000001.tar", 7, 5)
    make_shard(root / "set-val-000000.tar", 0, 6)


def test_shards_are_read_in_any_order(tmp_path: Path) -> None:
    make_shards(tmp_path)
    data = Folder(str(tmp_path), size=8, batch_size=4, val="test", workers=0, crop="centre", flip=False)
    assert data.counts() == {"train": 12, "val": 6, "test": 6}
    assert data.classes == 3
    for images, labels, index, view in data.train_dataloader():
        assert ((images.float().mean((1, 2, 3)) / 5).round() == index).all()
        assert torch.equal(labels, index % 3)
        assert view.tolist() == [0] * 4
    assert data.views == 1


SHARD: dict[str, Callable[[Path], Any]] = {
    **{name: damage for name, damage in ANY.items() if name != "a folder"},
    "of another name": lambda path: path.rename(path.with_name("set-000000.tar")),
    "compressed": lambda path: rewritten(path, gzip.compress(path.read_bytes())),
    "no label": lambda path: rewritten(path, path.read_bytes().replace(b"000002.cls", b"000002.txt")),
}


@pytest.mark.parametrize("damage", SHARD)
def test_damaged_shards_are_named(tmp_path: Path, damage: str) -> None:
    make_shards(tmp_path)
    (tmp_path / "set-train-000001.tar").unlink()
    SHARD[damage](tmp_path / "set-train-000000.tar")
    with pytest.raises(InputError, match=r"000000\.tar|no images in shards named \*train\*\.tar") as caught:
        list(Folder(str(tmp_path), size=8, batch_size=1, val="test", workers=0).train_dataloader())
    assert "\n" not in str(caught.value)


def test_hugging_face_sets_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"n": datasets.Value("int32"), "img": datasets.Image()})
    features["label"] = datasets.ClassLabel(names=["x", "y"])
    rows = {"n": list(range(8)), "label": [0, 1] * 4}
    pictures = [Image.new("RGB", (9, 7), (i, i, i)) for i in range(8)]
    made = datasets.Dataset.from_dict({**rows, "img": pictures}, features=features)
    datasets.DatasetDict({"train": made, "test": made.select(range(4))}).save_to_disk(str(tmp_path / "set"))
    found = kd.data["huggingface"](name=str(tmp_path / "set"))
    assert found.train[0].shape == (8, 3, 7, 9)
    assert found.train[0][:, 0, 0, 0].tolist() == list(range(8))
    assert found.names == ("x", "y")
    assert kd.data["huggingface"](name=str(tmp_path / "set"), size=4).test[0].shape == (4, 3, 4, 4)
    with pytest.raises(InputError, match=r"unknown split of .*'tset'; did you mean 'test'"):
        kd.data["huggingface"](name=str(tmp_path / "set"), test="tset")
    with pytest.raises(InputError, match=r"unknown data.image of type Image 'imgs'; did you mean 'img'"):
        kd.data["huggingface"](name=str(tmp_path / "set"), image="imgs")


def test_hugging_face_sets_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(lambda: kd.data["huggingface"](name="uoft-cs/cifar10"), "pip install datasets")
    refused(lambda: kd.data["huggingface"](), "data.name must be given")
