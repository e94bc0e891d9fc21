"""A teacher's weights in every published container, and every file that must be refused."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Complain
from test_zoo import ZOO, fill, hashed
from torch import Tensor

import kd
from kd.errors import InputError
from kd.models.weight_files import read
from kd.models.weights import load_into, save

OPTIONS = argparse.Namespace(arch="resnet20", lr=0.05)


def recorded(name: str) -> dict[str, Tensor]:
    """A published network's weights: the recorded keys and shapes, filled by the recorded formula."""
    facts = ZOO[name]
    state = {key: torch.empty(shape, dtype=torch.float64) for key, shape in facts["state_dict"]}
    fill(state, facts["fill_gain"])
    return state


def torchdistill(state: dict[str, Tensor]) -> object:
    return {"model": state, "optimizer": {"state": {}}, "best_value": 71.2, "lr_scheduler": {}, "args": OPTIONS}


CONTAINERS = {
    "plain.pth": lambda s: s,
    "repdistiller.pth": lambda s: {
        "epoch": 240,
        "model": s,
        "best_acc": torch.tensor(72.3),
        "optimizer": {"state": {}},
    },
    "repdistiller_last.pth": lambda s: {"opt": OPTIONS, "model": s},
    "mdistiller.pth": lambda s: {"epoch": 240, "model": {f"module.{k}": v for k, v in s.items()}, "best_acc": 72.3},
    "mdistiller_distiller.pth": lambda s: {
        "model": {f"module.{part}{k}": v for k, v in s.items() for part in ("student.", "teacher.")}
    },
    "torchdistill.pt": torchdistill,
    "timm.pth.tar": lambda s: {"epoch": 3, "arch": "x", "state_dict": s, "args": OPTIONS, "metric": np.float64(72.3)},
    "lightning.ckpt": lambda s: {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{k}": v for k, v in s.items()},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {},
    },
    "compiled.pth": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("name", ["resnet20", "vgg8", "ShuffleV1"])
@pytest.mark.parametrize("file", CONTAINERS)
def test_each_published_container_gives_the_recorded_logits(name: str, file: str, tmp_path: Path) -> None:
    state, logits = recorded(name), torch.tensor(ZOO[name]["logits"], dtype=torch.float64)
    images = 4 * (hashed(999999, (2, 3, 32, 32)) - 0.5)
    for legacy in (False, True):  # RepDistiller's files are of torch's first format
        torch.save(CONTAINERS[file](state), tmp_path / file, _use_new_zipfile_serialization=not legacy)
        network = kd.models[name](classes=100).double().eval()
        load_into(network, tmp_path / file)
        with torch.no_grad():
            difference = (network(images) - logits).abs().max()
        assert difference <= 1e-8 * logits.abs().max()


def test_a_library_s_own_files_load(tmp_path: Path) -> None:
    import timm
    import torchvision

    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "tv.pth")
    load_into(kd.models["torchvision"]("resnet18", 7), tmp_path / "tv.pth")
    save(timm.create_model("resnet10t", num_classes=7), tmp_path / "timm.safetensors")
    load_into(kd.models["timm"]("resnet10t", 7), tmp_path / "timm.safetensors")


def test_unwrapped_container_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = kd.models["cnn"](classes=3)
    torch.save({"model": {f"module.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        assert load_into(kd.models["cnn"](classes=3), tmp_path / "w.pth").wrappers == ("model", "module.")
    assert "under the keys 'model', 'module.'" in caplog.text


def test_missing_batch_counters_of_old_files_are_accepted(tmp_path: Path) -> None:
    state = {k: v for k, v in kd.models["cnn"](classes=3).state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    load_into(kd.models["cnn"](classes=3), tmp_path / "old.pth")


class Payload:
    """A pickle that would make a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def bad_files(folder: Path) -> dict[str, str]:
    """File or folder to what is said of it, for a teacher resnet8 with 10 classes and 1 channel."""
    network = kd.models["resnet8"](classes=10, channels=1)
    state = network.state_dict()
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "words.pth").write_text("this is no file of weights at all, but a sentence")
    torch.save(state, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    save(network, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-100])
    torch.save({"model": Payload(folder / "ran")}, folder / "code.pth")
    torch.save(network, folder / "module.pth")
    torch.save(kd.models["resnet20"](classes=10, channels=1).state_dict(), folder / "other.pth")
    save(kd.models["resnet20"](classes=10, channels=1), folder / "named.safetensors", {"name": '"resnet20"'})
    torch.save(kd.models["resnet8"](classes=7, channels=1).state_dict(), folder / "seven.pth")
    torch.save({**state, "fc.weight": state["fc.weight"] * math.nan}, folder / "nan.pth")
    torch.save({key: value for key, value in state.items() if key != "layer1.0.conv1.weight"}, folder / "less.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"weights": state, "epoch": 3}, folder / "nested.pth")
    (folder / "folder").mkdir()
    return {
        "empty.pth": "empty.pth is empty",
        "page.pth": "page.pth is a web page, not a weights file",
        "words.pth": "words.pth is damaged, truncated, or not a weights file",
        "cut.pth": "cut.pth is damaged, truncated",
        "cut.safetensors": "cut.safetensors is damaged, truncated",
        "code.pth": "code.pth contains Python objects besides tensors, which could run code, so it is not loaded",
        "module.pth": "module.pth contains Python objects besides tensors",
        "other.pth": "other.pth does not fit ResNet: 72 unexpected, first layer1.1.conv1.weight",
        "named.safetensors": "it was saved from resnet20",
        "seven.pth": "2 of another shape, first fc.weight [7, 64] for [10, 64]",
        "nan.pth": "nan.pth: fc.weight contains values that are not finite",
        "less.pth": "1 missing, first layer1.0.conv1.weight",
        "list.pth": "list.pth contains no state dict of tensors, but a list",
        "nested.pth": "nested.pth contains no state dict of tensors, but 'weights', 'epoch'",
        "folder": "folder is a folder without student.safetensors, model.safetensors or pytorch_model.bin",
        "absent.pth": "no weights at absent.pth",
        "https://example.org/teacher.pth": "is a URL; weights are read from local files only",
    }


SMALL = (
    "data=synthetic",
    "data.shape=[1,8,8]",
    "data.classes=10",
    "data.train=60",
    "data.test=20",
    "data.batch_size=20",
)


def test_each_bad_teacher_gives_a_one_line_error(
    complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, said in bad_files(tmp_path).items():
        for force in ("0", "1") if file in ("code.pth", "module.pth") else ("0",):
            monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
            line = complain(*SMALL, "teacher=resnet8", "student=cnn", f"teacher.checkpoint={file}")
            assert line.startswith("error: teacher: ")
            assert said in line, line
    for path in (f"file://{tmp_path}/code.pth", f"file:{tmp_path}/code.pth"):
        assert "is a URL" in complain(*SMALL, "teacher=resnet8", f"'teacher.checkpoint={path}'".strip("'"))
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.rglob("summary.json"))


def test_reading_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for legacy in (False, True):
        torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "code.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError, match="could run code"):
            read(tmp_path / "code.pth")
    assert not (tmp_path / "ran").exists()


def test_selected_columns_of_a_teacher_with_more_classes(
    complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd import Batch
    from kd.train import assemble

    torch.manual_seed(0)
    wide = kd.models["cnn"](classes=30, channels=1)
    save(wide, tmp_path / "wide.safetensors")
    data = assemble.data({"seed": 0, "data": {"_target_": "kd.data.sources.digits"}})
    picks = [3, 1, 4, 15, 9, 2, 6, 5, 8, 7]
    node = {"_target_": "kd.models.small.CNN", "checkpoint": str(tmp_path / "wide.safetensors"), "classes": picks}
    teacher = assemble.teacher({"teacher": node}, data)
    images = data.memory.parts["val"][0][:5]
    answer = teacher(Batch(images, torch.zeros(5)))[""]
    everything = kd.Normalized(wide.eval(), data.mean, data.std)(images)
    assert torch.equal(answer, everything[:, picks])
    monkeypatch.chdir(tmp_path)
    line = complain("teacher=cnn", "teacher.checkpoint=wide.safetensors", "teacher.classes=[1,2]")
    assert "teacher.classes selects 2 columns, but the data has 10 classes" in line


def test_weights_of_a_run_bring_its_normalisation(tmp_path: Path) -> None:
    network = kd.models["cnn"](classes=3, channels=1)
    save(network, tmp_path / "w.safetensors", {"mean": "[0.25]", "std": "[0.5]", "size": "16"})
    prepared = kd.models.prepare(kd.models["cnn"](3, 1), [0.1], [0.2], str(tmp_path / "w.safetensors"))
    assert (prepared.mean.item(), prepared.std.item(), prepared.size) == (0.25, 0.5, 16)
    assert prepared(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
