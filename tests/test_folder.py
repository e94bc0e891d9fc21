"""Pictures decoded by workers: equal batches for any number of workers and any start within an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain
from test_data import make_folder

from kd import Batch
from kd.data.folder import Folder
from kd.data.image_files import ImageFileLoader
from kd.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pets")
    make_folder(folder, per_class=10)
    return folder


def folder(root: Path, **options: Any) -> Folder:
    return Folder(str(root), **{"size": 16, "batch_size": 4, "val": "test", "workers": 0, "seed": 3, **options})


def epoch(data: Folder, number: int, rank: int = 0, world: int = 1, start: int = 0) -> list[Batch]:
    place = (data.seed, lambda: number, rank, world, start)
    return list(ImageFileLoader(data.parts["train"], data.batch_size, data.workers, data._views, *place))


def same(found: list[Batch], expected: list[Batch]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two) if a is not None and b is not None)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_independent_of_the_number_of_workers(root: Path, workers: int) -> None:
    options = {"transform": "randaugment"}
    expected = [epoch(folder(root, **options), number) for number in (0, 1)]
    data = folder(root, workers=workers, **options)
    for number, batches in enumerate(expected):
        assert same(epoch(data, number), batches)
    assert not same(*expected)


def test_two_processes_equal_one_process(root: Path) -> None:
    alone = epoch(folder(root), 2)
    ranks = [epoch(folder(root, batch_size=2), 2, rank, 2) for rank in (0, 1)]
    for step, batch in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        index = torch.cat([part.index for part in parts])
        images = torch.cat([part.images for part in parts])
        assert torch.equal(images[index.argsort()], batch.images[batch.index.argsort()])


@pytest.mark.parametrize("k", [0, 2, 5])
def test_epoch_can_continue_at_any_batch(root: Path, k: int) -> None:
    whole = epoch(folder(root), 1)
    assert len(whole) == 5
    assert same(epoch(folder(root), 1, start=4 * k), whole[k:])


def test_data_module_starts_once_at_the_given_batch(root: Path) -> None:
    data = folder(root)
    data.start = 8
    loader = data.train_dataloader()
    assert [len(list(loader)), len(list(loader)), len(loader)] == [3, 5, 5]


def test_pixels_depend_on_index_and_stored_view(root: Path) -> None:
    known: dict[tuple[int, int], bytes] = {}
    for seed in (0, 8):
        data = folder(root, seed=seed, views=3, transform="trivialaugmentwide")
        assert data.views == 3
        for number in range(6):
            for batch in epoch(data, number):
                assert batch.view is not None
                for i, v, image in zip(batch.index.tolist(), batch.view.tolist(), batch.images):
                    assert known.setdefault((i, v), image.numpy().tobytes()) == image.numpy().tobytes()
    assert len(known) > 56
    assert len(set(known.values())) > 50


def test_views_are_counted_where_possible(root: Path) -> None:
    assert folder(root).views == 0
    assert epoch(folder(root), 0)[0].view is None
    still = folder(root, crop="centre", flip=False)
    assert still.views == 1
    first, second = (
        {i: image for batch in epoch(still, n) for i, image in zip(batch.index.tolist(), batch.images)} for n in (0, 1)
    )
    assert all(torch.equal(first[i], second[i]) for i in range(20))


def test_description_covers_what_determines_the_pixels(root: Path) -> None:
    options = [{}, {"flip": False}, {"scale": [0.5, 1.0]}, {"crop": "centre"}, {"transform": "randaugment"}]
    options += [{"size": 17}, {"views": 2}, {"transform": ["randaugment", "colorjitter"]}]
    told = {json.dumps(folder(root, **given).augmentation()) for given in options}
    assert len(told) == len(options)


def test_the_fingerprint_is_of_paths_sizes_and_labels(tmp_path: Path) -> None:
    make_folder(tmp_path / "here", per_class=4)
    make_folder(tmp_path / "there", per_class=4)
    here, there = (folder(tmp_path / name) for name in ("here", "there"))
    assert here.train_sha256() == there.train_sha256()
    assert here.describe() == there.describe()
    assert folder(tmp_path / "here", val=0.3).train_sha256() != here.train_sha256()
    (tmp_path / "there/train/ant/0.png").rename(tmp_path / "there/train/ant/x.png")
    assert folder(tmp_path / "there").train_sha256() != here.train_sha256()
    with open(tmp_path / "here/train/ant/1.png", "ab") as stream:
        stream.write(b"x")
    assert folder(tmp_path / "here").train_sha256() != here.train_sha256()


def test_subsets_work_as_in_memory(root: Path) -> None:
    data = folder(root, val=0.2, per_class=3, unlabelled=True)
    assert data.counts() == {"train": 16, "val": 4, "test": 20, "labelled": 6}
    labels = torch.cat([batch.labels for batch in data.train_dataloader()])
    assert (labels >= 0).sum() == 6
    assert folder(root, val=0.2, fraction=0.5).counts() == {"train": 8, "val": 4, "test": 20}


def test_global_random_state_does_not_change(root: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    epoch(folder(root, transform="randaugment"), 0)
    assert torch.equal(torch.rand(2), expected)


WRONG = {
    "crop": ({"crop": "centr"}, r"unknown crop 'centr'; did you mean 'centre'"),
    "scale": ({"scale": [0.5, 0.1]}, r"scale must be two fractions"),
    "views": ({"views": -2}, r"views must be at least 1"),
    "workers": ({"workers": -1}, r"workers at least 0"),
    "val": ({"val": 3}, r"val must be a fraction in \(0, 1\) or 'test', got 3"),
    "batch": ({"batch_size": 50}, r"batch_size=50 exceeds the 20 training images"),
    "transform": ({"transform": {"_target_": "torchvision.transforms.v2.CenterCrop", "size": 9}}, "must keep uint8"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_invalid_options_are_refused(root: Path, case: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(InputError, match=case[1]) as caught:
        folder(root, **case[0])
    assert "\n" not in str(caught.value)


REFUSED = {
    "+data.mixup=0.2": "data.mixup is for data in memory; Folder has no such option",
    "data.veiws=3": "unknown key data.veiws; did you mean data.views?",
    "data.root=/nowhere": "data.root=/nowhere is not a folder; it must contain train/CLASS/*",
}


@pytest.mark.parametrize("override", REFUSED)
def test_command_line_errors_are_one_line(override: str, root: Path, complain: Complain) -> None:
    place = [] if "root" in override else [f"data.root={root}"]
    assert REFUSED[override] in complain("data=folder", "data.batch_size=4", *place, override)
