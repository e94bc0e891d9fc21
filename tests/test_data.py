"""Data in memory, computed randomness, and the official file formats."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import kd
from kd import Arrays, Batch, Memory
from kd.data.augment import crop_flip, permutation, view_count, views
from kd.errors import InputError
from kd.rng import hashed


def arrays(count: int = 60, classes: int = 3, size: int = 6) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, size, size), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % classes
    return Arrays((images, labels), (images[:10], labels[:10]), tuple("abc"[:classes]))


def test_digits_need_no_files() -> None:
    digits = kd.data["digits"]()
    assert digits.train[0].shape == (1438, 1, 8, 8)
    assert digits.train[0].dtype == torch.uint8
    assert digits.train[0].max() == 255
    assert len(digits.test[1]) == 359


def test_synthetic_is_seeded_learnable_and_of_any_shape() -> None:
    first, again = (kd.data["synthetic"](shape=[2, 5, 9], classes=4, train=200, test=80) for _ in range(2))
    assert torch.equal(first.train[0], again.train[0])
    assert first.train[0].shape == (200, 2, 5, 9)
    centres = torch.stack([first.train[0][first.train[1] == c].float().mean(0) for c in range(4)])
    nearest = torch.cdist(first.test[0].float().flatten(1), centres.flatten(1)).argmin(1)
    assert (nearest == first.test[1]).float().mean() > 0.9


def test_the_split_is_held_out_by_class_and_shared_by_seeds() -> None:
    memory = Memory(arrays(), batch_size=8, val=0.2)
    counts = {part: len(labels) for part, (_, labels) in memory.parts.items()}
    assert counts == {"train": 48, "val": 12, "test": 10}
    assert memory.parts["val"][1].bincount().tolist() == [4, 4, 4]
    known = {image.numpy().tobytes() for image in memory.parts["train"][0]}
    assert not known & {image.numpy().tobytes() for image in memory.parts["val"][0]}
    assert torch.equal(memory.parts["val"][0], Memory(arrays(), batch_size=8, val=0.2).parts["val"][0])


def test_test_set_is_used_for_selection_only_on_request() -> None:
    memory = Memory(arrays(), batch_size=8, val="test")
    assert memory.parts["val"] is memory.parts["test"]
    assert len(memory.parts["train"][1]) == 60


@pytest.mark.parametrize(
    "wrong",
    [{"val": 0.0}, {"val": 1.0}, {"val": "tset"}, {"batch_size": 0}, {"pad": 6}, {"batch_size": 100}],
    ids=["no-validation", "validation-only", "misspelt-part", "empty-batch", "padding-too-wide", "batch-too-large"],
)
def test_sizes_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Memory(arrays(), **wrong)  # type: ignore[arg-type]


def test_an_epoch_is_a_permutation_that_is_computed() -> None:
    first, second = permutation(1000, 1, 0), permutation(1000, 1, 1)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(1000, 1, 0))
    assert (first == second).float().mean() < 0.01


def test_ranks_share_an_epoch_and_evaluation_is_not_padded() -> None:
    memory = Memory(arrays(57), batch_size=5, eval_batch_size=4, val="test")
    parts = [torch.cat([batch.index for batch in memory.loader("train", 3, rank=r, world=2)]) for r in (0, 1)]
    assert not set(parts[0].tolist()) & set(parts[1].tolist())
    tested = [batch.index for r in (0, 1, 2) for batch in memory.loader("test", rank=r, world=3)]
    assert sorted(torch.cat(tested).tolist()) == list(range(10))
    for part, rank, world in (("train", 1, 2), ("test", 2, 3), ("val", 0, 1)):
        loader = memory.loader(part, rank=rank, world=world)
        assert len(list(loader)) == len(loader)


def test_a_view_is_a_padded_crop_and_a_flip() -> None:
    pad, images = 2, torch.randint(1, 256, (view_count(2, True), 3, 6, 5)).to(torch.uint8)
    view = torch.arange(len(images))
    found = crop_flip(images, view, pad, True)
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    for v in view.tolist():
        dy, dx = divmod(v // 2, 2 * pad + 1)
        expected = padded[v, :, dy : dy + 6, dx : dx + 5]
        assert torch.equal(found[v], expected.flip(-1) if v % 2 else expected)


def test_views_are_uniform_and_a_function_of_seed_epoch_and_index() -> None:
    index = torch.arange(162_000)
    drawn = views(index, seed=1, epoch=2, pad=4, flip=True)
    counts = drawn.bincount(minlength=162).double()
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert counts.shape == (162,)
    assert 95 < chi_square < 245  # 161 degrees of freedom: mean 161, deviation 18
    assert torch.equal(drawn[100:200], views(index[100:200], 1, 2, 4, True))
    assert (drawn == views(index, 1, 3, 4, True)).float().mean() < 0.01
    assert (drawn == views(index, 2, 2, 4, True)).float().mean() < 0.01
    bits = hashed(0, 0, index)
    assert bits.min() >= 0
    assert bits.max() < 2**32


def test_augmentation_reports_the_view_and_does_not_affect_evaluation() -> None:
    memory = Memory(arrays(), batch_size=8, pad=1, flip=True)
    batch = next(iter(memory.loader("train", seed=1)))
    changed = memory.augment(batch, seed=1, epoch=0)
    assert changed.view is not None
    assert torch.equal(changed.images, crop_flip(batch.images, changed.view, 1, True))
    assert memory.augment(Batch(batch.images, batch.labels), 1, 0).view is None


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    with gzip.open(path, "wb") as stream:
        stream.write(header + array.astype(np.uint8).tobytes())


def make_idx(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 30), ("t10k", 12)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", np.arange(count * 784).reshape(count, 28, 28) % 251)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)


@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_idx_files_are_read_from_both_layouts(tmp_path: Path, below: str) -> None:
    make_idx(tmp_path / below)
    found = kd.data["fashion_mnist"](root=str(tmp_path))
    assert found.train[0].shape == (30, 1, 28, 28)
    assert found.train[0].flatten()[:300].tolist() == [i % 251 for i in range(300)]
    assert found.test[1].tolist() == [i % 10 for i in range(12)]


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "absent", "swapped"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    make_idx(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "swapped":
        path.write_bytes((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"<html>" * 99}[damage])
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte"):
        kd.data["fashion_mnist"](root=str(tmp_path))


def make_cifar(folder: Path, labels: bytes, files: list[str], names: tuple[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        pixels = (np.arange(20 * 3072).reshape(20, 3072) + number).astype(np.uint8)
        (folder / file).write_bytes(pickle.dumps({b"data": pixels, labels: [i % 10 for i in range(20)]}, protocol=2))
    (folder / names[0]).write_bytes(pickle.dumps({names[1]: [b"c%d" % i for i in range(10)]}, protocol=2))


def test_cifar_batches_are_read(tmp_path: Path) -> None:
    ten = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    make_cifar(tmp_path / "cifar-10-batches-py", b"labels", ten, ("batches.meta", b"label_names"))
    make_cifar(tmp_path / "cifar-100-python", b"fine_labels", ["train", "test"], ("meta", b"fine_label_names"))
    found = kd.data["cifar10"](root=str(tmp_path))
    assert found.train[0].shape == (100, 3, 32, 32)
    assert found.names[3] == "c3"
    assert found.train[0][0].flatten()[:5].tolist() == [0, 1, 2, 3, 4]
    assert kd.data["cifar100"](root=str(tmp_path / "cifar-100-python")).test[0].shape == (20, 3, 32, 32)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_code_in_a_batch_file_does_not_run(tmp_path: Path) -> None:
    make_cifar(tmp_path / "cifar-100-python", b"fine_labels", ["train", "test"], ("meta", b"fine_label_names"))
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({b"data": Payload(tmp_path / "ran")}))
    with pytest.raises(InputError, match="train is damaged"):
        kd.data["cifar100"](root=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_missing_data_set_error_names_the_searched_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root=.*nowhere does not exist.*data\.download=true"):
        kd.data["cifar10"](root=str(tmp_path / "nowhere"))


def make_folder(root: Path, per_class: int = 6) -> None:
    from torchvision.io import write_png

    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                picture = torch.randint(0, 256, (3, 40 + i, 50), generator=generator).to(torch.uint8)
                write_png(picture, str(root / part / name / f"{i}.png"))


def test_class_folders_are_read_resized_and_split(tmp_path: Path) -> None:
    from kd.data.folder import Folder

    make_folder(tmp_path)
    data = Folder(str(tmp_path), size=32, batch_size=4, val=0.34, workers=0)
    assert (data.classes, data.names, data.shape) == (2, ("ant", "bee"), (3, 32, 32))
    sizes = {part: len(images) for part, images in data.parts.items()}
    assert sizes == {"train": 8, "val": 4, "test": 12}
    images, labels, index, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert [data.parts["train"].files[i][1] for i in index.tolist()] == labels.tolist()
    tested = [batch[2] for batch in data.test_dataloader()]
    assert torch.cat(tested).tolist() == list(range(12))


def test_bad_class_folders_are_named(tmp_path: Path) -> None:
    from kd.data.folder import Folder

    with pytest.raises(InputError, match=r"data\.root: .*train"):
        Folder(str(tmp_path))
    make_folder(tmp_path)
    (tmp_path / "train/ant/0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"ant/0\.png cannot be decoded"):
        list(Folder(str(tmp_path), size=8, batch_size=1, val="test", workers=0).train_dataloader())
    (tmp_path / "val/ant").rename(tmp_path / "val/cat")
    with pytest.raises(InputError, match=r"different classes, first \['ant', 'cat'\]"):
        Folder(str(tmp_path))
