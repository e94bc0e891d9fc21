"""kd-export: files that answer as PyTorch does, without kd, and the card beside them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Complain
from safetensors.torch import load_file
from torch import Tensor, nn
from trained import trained

import kd
import kd.cli
import kd.export.timing
from kd.export import export
from kd.export.formats import FORMATS

ALONE = ("data=digits", "teacher=none", "objective=ce", "epochs=2")
STUDENTS = {
    "zoo": (*ALONE, "student=resnet8"),
    "torchvision": (*ALONE, "student=torchvision", "student.name=shufflenet_v2_x0_5", "student.stem=cifar"),
    "timm": (*ALONE, "student=timm", "student.name=resnet10t", "student.stem=cifar"),
    "simkd": ("data=digits", "teacher=resnet8", "student=cnn", "objective=simkd", "epochs=2"),
}
HUNDRED = kd.data["digits"]().test[0][-100:].float() / 255


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of each kind of student, trained when first asked for."""
    runs: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in runs:
            runs[kind] = trained(tmp_path_factory.mktemp(kind), *STUDENTS[kind])
        return runs[kind]

    return of


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Latency is measured, but not for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kd.export.timing, "SECONDS", 0.02)
        yield


Made = Callable[[str, str], tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def made(run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The card and the file of a student in a format, exported when first asked for."""
    exports: dict[tuple[str, str], tuple[dict[str, Any], Path]] = {}

    def of(kind: str, format: str) -> tuple[dict[str, Any], Path]:
        for package in FORMATS[format].needs:
            pytest.importorskip(package)
        if (kind, format) not in exports:
            folder = tmp_path_factory.mktemp(f"{kind}-{format}")
            card = export(str(run(kind)), format, out=str(folder), license="Apache-2.0")
            exports[kind, format] = card, folder / card["file"]
        return exports[kind, format]

    return of


@torch.no_grad()
def pytorch(run: Path) -> Tensor:
    return kd.load(run)(HUNDRED)


def read(format: str, file: Path, images: Tensor = HUNDRED) -> Tensor:
    """What a file answers, in several batches, read by its own library."""
    parts = images.split([1, 7, len(images) - 8])
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(file)
        return torch.from_numpy(np.concatenate([session.run(None, {"images": part.numpy()})[0] for part in parts]))
    network = torch.export.load(file).module() if format == "torch_export" else torch.jit.load(file)
    with torch.no_grad():
        return torch.cat([network(part) for part in parts])


GRAPHS = [name for name, format in FORMATS.items() if format.graph]
SLOW = pytest.mark.slow


@pytest.mark.parametrize("format", GRAPHS)
@pytest.mark.parametrize("kind", ["zoo", *(pytest.param(kind, marks=SLOW) for kind in STUDENTS if kind != "zoo")])
def test_the_file_answers_as_pytorch_does(kind: str, format: str, run: Callable[[str], Path], made: Made) -> None:
    card, file = made(kind, format)
    expected = pytorch(run(kind))
    assert expected.std(0).max() > 0.1  # a student that tells images apart
    assert (read(format, file) - expected).abs().max() < 1e-4
    assert card["check"]["images"] == 128
    assert card["check"]["largest_difference"] < 1e-4


def test_softmax_gives_probabilities(run: Callable[[str], Path], tmp_path: Path) -> None:
    card = export(str(run("zoo")), "torchscript", softmax=True, out=str(tmp_path))
    outputs = read("torchscript", tmp_path / card["file"])
    assert card["output"]["name"] == "probabilities"
    assert torch.allclose(outputs, pytorch(run("zoo")).softmax(1), atol=1e-6)


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np
images, expected = np.load("images.npy"), np.load("expected.npy")
{program}
assert given.shape == expected.shape
assert np.abs(np.asarray(given) - expected).max() < 1e-4
assert not any(name.split(".")[0] in {refused!r} for name in sys.modules)
"""
LIBRARIES = {
    "onnx": "import onnxruntime\ngiven = onnxruntime.InferenceSession(FILE).run(None, {'images': images})[0]",
    "torch_export": "import torch\ngiven = torch.export.load(FILE).module()(torch.tensor(images)).detach()",
    "torchscript": "import torch\ngiven = torch.jit.load(FILE)(torch.tensor(images)).detach()",
}
TORCHVISION = """
import json, torch, torchvision
from safetensors import safe_open
network = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
network.conv1[0] = torch.nn.Conv2d(1, 24, 3, 1, 1, bias=False)
network.maxpool = torch.nn.Identity()
with safe_open(FILE, "pt") as file:
    network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
    mean, std = (torch.tensor(json.loads(file.metadata()[key])).view(1, -1, 1, 1) for key in ("mean", "std"))
given = network.eval()((torch.tensor(images) - mean) / std).detach()
"""


def without_kd(program: str, file: Path, run: Path, folder: Path, *refused: str) -> None:
    np.save(folder / "images.npy", HUNDRED.numpy())
    np.save(folder / "expected.npy", pytorch(run).numpy())
    script = WITHOUT.format(refused=("kd", *refused), program=program.replace("FILE", repr(str(file))))
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("format", ["onnx", *(pytest.param(name, marks=SLOW) for name in GRAPHS if name != "onnx")])
def test_exported_file_works_without_kd(format: str, run: Callable[[str], Path], made: Made, tmp_path: Path) -> None:
    file = made("zoo", format)[1]
    refused = ("torch",) if format == "onnx" else ("torchvision", "pytorch_lightning")
    without_kd(LIBRARIES[format], file, run("zoo"), tmp_path, *refused)


@SLOW
@pytest.mark.parametrize("whose", ["the run's", "exported"])
def test_exported_weights_load_in_torchvision_without_kd(
    whose: str, run: Callable[[str], Path], made: Made, tmp_path: Path
) -> None:
    exported = made("torchvision", "safetensors")[1]
    file = exported if whose == "exported" else run("torchvision") / "student.safetensors"
    without_kd(TORCHVISION, file, run("torchvision"), tmp_path, "pytorch_lightning")


@SLOW
def test_weights_of_a_student_with_a_predictor_are_all_in_one_file(run: Callable[[str], Path], made: Made) -> None:
    state = load_file(made("simkd", "safetensors")[1])
    student = load_file(run("simkd") / "student.safetensors")
    predictor = load_file(run("simkd") / "predictor.safetensors")
    assert set(state) == {*student, *(f"predictor.{key}" for key in predictor)}


def test_card_describes_the_file(run: Callable[[str], Path], made: Made) -> None:
    card, file = made("zoo", "torch_export")
    assert json.loads((file.parent / "card.json").read_text()) == card
    summary = json.loads((run("zoo") / "summary.json").read_text())
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["license"] == {"student": "Apache-2.0", "data": None, "teacher": None}
    assert card["input"]["shape"] == ["batch", 1, 8, 8]
    assert card["output"]["classes"] == list("0123456789")
    assert card["metrics"] == summary["metrics"]
    assert {key: card["student"][key] for key in ("parameters", "macs")} == {"parameters": 77754, "macs": 763520}
    for batch in ("batch_1", "batch_64"):
        times = card["latency"][batch]
        assert 0 < times["p10_ms"] <= times["median_ms"] <= times["p90_ms"]
    text = (file.parent / "card.md").read_text()
    assert 'license: "Apache-2.0"' in text
    assert card["sha256"] in text
    assert str(run("zoo").parent) not in text + (file.parent / "card.json").read_text()


@pytest.mark.parametrize("format", GRAPHS)
def test_the_program_on_the_card_runs(
    format: str, run: Callable[[str], Path], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("zoo", format)[1].parent
    program = re.search(r"```python\n(.*?)```", (folder / "card.md").read_text(), re.DOTALL)
    assert program is not None
    names: dict[str, Any] = {"images": HUNDRED.numpy() if format == "onnx" else HUNDRED}
    monkeypatch.chdir(folder)
    exec(program[1], names)
    assert torch.allclose(torch.as_tensor(names["logits"]), pytorch(run("zoo")), atol=1e-4)


@pytest.mark.parametrize("kind", ["static", pytest.param("dynamic", marks=SLOW)])
def test_eight_bits_are_smaller_and_nearly_as_right(kind: str, run: Callable[[str], Path], tmp_path: Path) -> None:
    for package in FORMATS["onnx"].needs:
        pytest.importorskip(package)
    card = export(str(run("zoo")), int8=kind, out=str(tmp_path))["int8"]
    assert card["kind"] == kind
    assert card["bytes"] == (tmp_path / "student.int8.onnx").stat().st_size
    assert card["bytes"] < 0.5 * (tmp_path / "student.onnx").stat().st_size
    summary = json.loads((run("zoo") / "summary.json").read_text())
    assert card["test"]["float"]["acc"] == pytest.approx(summary["metrics"]["test"]["acc"], abs=1e-6)
    assert card["test"]["int8"]["acc"] == pytest.approx(card["test"]["float"]["acc"], abs=0.05)
    images, labels = kd.data["digits"]().test
    hits = read("onnx", tmp_path / "student.int8.onnx", images.float() / 255).argmax(1) == labels
    assert card["test"]["int8"]["acc"] == pytest.approx(float(hits.float().mean()), abs=0.005)


def test_existing_files_are_not_overwritten_without_permission(run: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("mine")
    with pytest.raises(kd.InputError, match=r"card.md exists; set overwrite=true to replace it"):
        export(str(run("zoo")), "torchscript", out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    export(str(run("zoo")), "torchscript", out=str(tmp_path), overwrite=True)
    assert (tmp_path / "card.md").read_text() != "mine"


class Moody(nn.Module):
    """Answers otherwise to a single image: no one pass through it shows both ways."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.fc(images.flatten(1))
        return -logits if len(images) == 1 else logits


class Branching(Moody):
    """Looks at the pixels' values to decide what it does."""

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1)) if images.sum() > 0 else self.fc(-images.flatten(1))


@pytest.mark.parametrize(
    ("name", "format", "line"),
    [
        ("Moody", "torchscript", "student.torchscript.pt is not kept: its logits differ from PyTorch's by up to"),
        ("Branching", "torch_export", "the student cannot be exported to student.pt2: "),
    ],
)
def test_exported_file_with_wrong_answers_is_deleted(name: str, format: str, line: str, tmp_path: Path) -> None:
    run = trained(tmp_path, *ALONE, "student=import", f"student.path=test_export:{name}", "epochs=1")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(kd.InputError, match=re.escape(line)) as refused:
        export(str(run), format, trust=True)
    assert len(str(refused.value).splitlines()) == 1
    assert set(tmp_path.rglob("*")) == before
    with pytest.raises(kd.InputError, match="it is not run"):
        export(str(run), format)


def test_missing_packages_error_names_the_install_command(
    run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(kd.InputError, match=r"needs onnx: pip install 'kd-lightning\[export\]'"):
        export(str(run("zoo")), "onnx")


BAD = {
    "run=nowhere": "nowhere is not a finished run",
    "format=onx": "unknown format 'onx'; did you mean 'onnx'?",
    "int8=sttic": "unknown kind of int8 'sttic'; did you mean 'static'?",
    "int8=static format=torchscript": "int8=static requires format=onnx",
    "format=safetensors softmax=true": "softmax=true needs a format with a graph",
    "data=synthetic data.shape=[1,8,8] data.classes=4": "data has 4 classes, but the run's student has 10",
    "out=/proc/none": "out=/proc/none cannot be created",
    "ovrwrite=true": "unknown key ovrwrite; did you mean overwrite?",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gives_a_one_line_error(
    words: str, run: Callable[[str], Path], complain: Complain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = words.split() if words.startswith("run=") else [f"run={run('zoo')}", *words.split()]
    assert BAD[words] in complain(*arguments, command="export")
    assert not list(tmp_path.iterdir())
    assert not (run("zoo") / "export").exists()


def test_command_writes_only_its_own_files(
    run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kd-export", f"run={run('zoo')}", "format=torchscript", "out=made"])
    kd.cli.export()
    output = capsys.readouterr()
    assert "largest difference from PyTorch" in output.out
    assert not output.err
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"made/student.torchscript.pt", "made/card.json", "made/card.md"}
