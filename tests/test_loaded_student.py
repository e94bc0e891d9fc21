"""``kd.load``: a student that refuses invalid pixels and predicts for pictures in files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import make_folder
from trained import trained

import kd
from kd import InputError
from kd.data.decode import File, decode
from kd.export import export

DIGITS = ("teacher=none", "objective=ce", "epochs=1", "student=mlp", "student.width=8", "callbacks.pictures=null")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("digits"), *DIGITS)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pets")
    make_folder(folder / "pets", per_class=10)
    data = ("data=folder", f"data.root={folder / 'pets'}", "data.size=16", "data.batch_size=5", "data.workers=0")
    return trained(folder, *DIGITS, *data, "data.val=test"), folder / "pets"


BYTES = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_bytes_of_any_type_and_floats_give_the_same_logits(digits: Path) -> None:
    student = kd.load(digits)
    expected = student(BYTES)
    for same in (BYTES.long(), BYTES.int(), BYTES.float() / 255, BYTES[:, 0], BYTES.permute(0, 2, 3, 1)):
        torch.testing.assert_close(student(same), expected)
    torch.testing.assert_close(student(BYTES.numpy()), expected)


BAD = {
    "float 0..255": (BYTES.float(), "divide them by their largest possible value"),
    "normalised": (BYTES.float() / 64 - 2, "which looks normalised"),
    "int64 beyond bytes": (BYTES.long() + 1000, "expected 0 to 255"),
    "other channels": (BYTES.expand(5, 3, 8, 8), r"declared shape \[C, H, W\] is \[1, 8, 8\]"),
    "flat": (BYTES.flatten(1), r"not \[B, C, H, W\]"),
    "nan": (BYTES * torch.nan, "not finite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_values_outside_the_pixel_range_are_refused(kind: str, digits: Path) -> None:
    images, said = BAD[kind]
    with pytest.raises(InputError, match=said):
        kd.load(digits)(images)


def test_single_image_error_suggests_a_batch(pets: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=r"add a batch dimension to a single image: images\[None\]"):
        kd.load(pets[0])(torch.zeros(3, 16, 16))


@torch.no_grad()
def test_picture_file_is_predicted_as_in_evaluation(pets: tuple[Path, Path]) -> None:
    from torchvision.transforms import v2

    run, root = pets
    student = kd.load(run)
    files = sorted(root.glob("val/*/*.png"))
    image = v2.CenterCrop(16)(v2.Resize(18, antialias=True)(decode(File(str(files[0]), -1))))
    expected = student(image[None]).softmax(-1)[0]
    found = student.predict(files[0])
    assert list(found.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert found.probability == max(found.probabilities.values())
    assert found.probabilities[found.label] == found.probability
    several = student.predict([str(files[0]), Image.open(files[1])])
    assert several[0].label == found.label
    assert len(several) == 2
    assert student.predict([]) == []


@torch.no_grad()
def test_picture_file_for_a_grey_student(digits: Path, tmp_path: Path) -> None:
    student = kd.load(digits)
    Image.fromarray(BYTES[0, 0].numpy()).save(tmp_path / "five.png")
    expected = student(BYTES[:1]).softmax(-1)[0].tolist()
    assert list(student.predict(tmp_path / "five.png").probabilities.values()) == pytest.approx(expected, abs=1e-6)
    wide = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    assert student.predict(wide).label in student.classes


def test_non_picture_is_refused(digits: Path, tmp_path: Path) -> None:
    student = kd.load(digits)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png cannot be decoded"):
        student.predict(tmp_path / "text.png")
    with pytest.raises(InputError, match="takes a path or a Pillow image, got a int"):
        student.predict([3])


def test_pictures_for_a_custom_data_module_are_refused(tmp_path: Path) -> None:
    words = ("~data", "+data={_target_: test_own_data_modules.Own}")
    run = trained(tmp_path, *DIGITS, *words)
    with pytest.raises(InputError, match="the run's custom data module prepares images in its own way"):
        kd.load(run).predict(Image.new("L", (8, 8)))


def test_the_classes_of_a_student_are_named(digits: Path) -> None:
    assert kd.load(digits).classes == tuple("0123456789")


def test_loaded_student_is_an_independent_module(digits: Path, tmp_path: Path) -> None:
    student = kd.load(digits)
    twin = copy.deepcopy(student)
    torch.testing.assert_close(twin(BYTES), student(BYTES))
    assert twin.predict(Image.new("L", (8, 8))).label == student.predict(Image.new("L", (8, 8))).label
    assert set(student.state_dict()) == {f"net.{name}" for name in student.net.state_dict()}
    torch.jit.trace(student, torch.rand(2, 1, 8, 8))
    torch.export.export(student, (torch.rand(2, 1, 8, 8),))


def test_card_describes_resizing_and_cropping(pets: tuple[Path, Path], tmp_path: Path) -> None:
    export(str(pets[0]), format="safetensors", out=str(tmp_path))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["input"]["preparation"] == {"resize": 18, "crop": [16, 16]}
    said = "the shorter side is resized to 18 pixels (bilinear, antialiased), then the central 16x16 is cropped"
    assert said in (tmp_path / "card.md").read_text()
