"""Files of weights: which entries are chosen or skipped, and errors for files that hold no weights."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Complain
from torch import Tensor, nn

import kd
from kd.errors import InputError
from kd.models.weight_files import read
from kd.models.weights import load_into, outputs_of, save


def cnn(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return kd.models["cnn"](classes=classes)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


BESIDE = {
    "ema": lambda ema: {"ema": ema},
    "model_ema": lambda ema: {"model_ema": ema},
    "state_dict_ema": lambda ema: {"state_dict_ema": ema},
    "ema.module": lambda ema: {"ema": {"decay": 0.99, "module": ema}},
    "averages.1": lambda ema: {"averages": [{"epoch": 3}, ema]},
}


@pytest.mark.parametrize("key", BESIDE)
def test_weights_beside_the_raw_ones_are_named_and_chosen_by_a_key(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, ema = cnn(1), cnn(2)
    torch.save({"epoch": 3, "state_dict": raw.state_dict(), **BESIDE[key](ema.state_dict())}, tmp_path / "w.pth")
    network = cnn()
    with caplog.at_level("INFO"):
        load_into(network, tmp_path / "w.pth")
    assert same(network, raw)
    assert f"contains several; using 'state_dict'; set checkpoint_key={key} to use {key!r}" in caplog.text
    load_into(network, tmp_path / "w.pth", key=key)
    assert same(network, ema)


def test_missing_key_error_lists_the_available_keys(tmp_path: Path) -> None:
    torch.save({"model": cnn().state_dict(), "model_ema": cnn().state_dict(), "optimizer": {}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="unknown checkpoint_key 'modelema'; did you mean 'model_ema'"):
        read(tmp_path / "w.pth", "modelema")


def test_a_key_without_a_checkpoint_is_refused(complain: Complain) -> None:
    line = complain("student=cnn", "student.checkpoint_key=ema", "teacher=none", "objective=ce")
    assert line == "error: student: checkpoint_key=ema selects weights in a file, but checkpoint is not set"


def test_unknown_container_needs_a_key(tmp_path: Path) -> None:
    torch.save({"weights": cnn().state_dict(), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="but 'weights', 'epoch'; set checkpoint_key=weights"):
        read(tmp_path / "w.pth")
    load_into(cnn(), tmp_path / "w.pth", key="weights")


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="contains no state dict of tensors"):
        read(tmp_path / "w.pth")


def test_an_average_of_weights_with_its_count_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from torch.optim.swa_utils import AveragedModel

    average = AveragedModel(cnn(1))
    torch.save(average.state_dict(), tmp_path / "swa.pth")
    network = cnn()
    with caplog.at_level("INFO"):
        load_into(network, tmp_path / "swa.pth")
    assert same(network, average.module)


STRANGERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "profilers": lambda s: {**s, "total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1)},
    "criterion": lambda s: {**under("model.", s), "criterion.weight": torch.ones(3)},
    "loss": lambda s: {**s, "loss_fn.weight": torch.ones(3)},
    "parallel and compiled": lambda s: under("module._orig_mod.", s),
    "compiled and parallel": lambda s: under("_orig_mod.module.", s),
    "backbone": lambda s: {**under("backbone.", s), "projector.weight": torch.ones(3)},
    "encoder": lambda s: under("encoder.", s),
    "peft": lambda s: under("base_model.model.", s),
    "half": lambda s: {key: value.half() if value.is_floating_point() else value for key, value in s.items()},
    "numbers": lambda s: {**s, "epoch": 3},  # type: ignore[dict-item]
    "uncounted": lambda s: {key: value for key, value in s.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_known_non_weight_entries_are_skipped(kind: str, tmp_path: Path) -> None:
    network, other = cnn(1), cnn(2)
    torch.save(STRANGERS[kind](network.state_dict()), tmp_path / "w.pth")
    load_into(other, tmp_path / "w.pth")
    tolerance = 1e-3 if kind == "half" else 0
    for one, two in zip(network.parameters(), other.parameters()):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


def test_skipped_unknown_entries_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({**cnn().state_dict(), "total_ops": torch.zeros(1)}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        load_into(cnn(), tmp_path / "w.pth")
    assert "without total_ops, which the network does not have" in caplog.text


def test_two_networks_in_one_file_are_selected_by_prefix(tmp_path: Path) -> None:
    a, b = cnn(1), cnn(2)
    torch.save({**under("a.", a.state_dict()), **under("b.", b.state_dict())}, tmp_path / "w.pth")
    network = cnn()
    with pytest.raises(InputError, match=r"under the prefix a\., b\. \(set checkpoint_key=a to remove it\)"):
        load_into(network, tmp_path / "w.pth")
    load_into(network, tmp_path / "w.pth", key="b")
    assert same(network, b)


def test_mismatch_error_names_first_and_nearest_keys(tmp_path: Path) -> None:
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), fc=nn.Linear(2, 2)))
    state = network.state_dict()
    torch.save({key.replace("fc.", "fc.1."): value for key, value in state.items()}, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        load_into(network, tmp_path / "w.pth")
    said = (
        "2 missing, first fc.weight, fc.bias; 2 unexpected, first fc.1.weight, fc.1.bias; nearest to fc.weight is fc.1"
    )
    assert said in str(caught.value)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    state = {key: value.to(torch.int8) for key, value in cnn().state_dict().items()}
    torch.save(state, tmp_path / "int8.pth")
    with pytest.raises(InputError, match=r"of another type, first .* torch.int8 for torch.float32"):
        load_into(cnn(), tmp_path / "int8.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_hugging_face_folder_is_read(name: str, tmp_path: Path) -> None:
    network, other = cnn(1), cnn(2)
    (tmp_path / "config.json").write_text("{}")
    if name.endswith("bin"):
        torch.save(network.state_dict(), tmp_path / name)
    else:
        save(network, tmp_path / name, {"format": "pt"})
    load_into(other, tmp_path)
    assert same(network, other)


def test_a_folder_without_weights_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "epoch_3.pth").touch()
    with pytest.raises(InputError, match=r"set the path of the weights file; available: epoch_3\.pth"):
        read(tmp_path)


def _zip(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return held.getvalue()


def _npz() -> bytes:
    held = io.BytesIO()
    np.savez(held, a=np.zeros(2))
    return held.getvalue()


def _npy() -> bytes:
    held = io.BytesIO()
    np.save(held, np.zeros(2))
    return held.getvalue()


def _script() -> bytes:
    held = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), held)
    return held.getvalue()


def _tar() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return held.getvalue()


KINDS: dict[str, tuple[bytes, str]] = {
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "is a git-LFS pointer"),
    "net.onnx": (b"\x08\x07\x12\x07pytorch", "is an ONNX file"),
    "net.h5": (b"\x89HDF\r\n\x1a\n" + bytes(80), "is an HDF5 file"),
    "script.pt": (_script(), "is a TorchScript archive"),
    "program.pt2": (_zip("p/archive_format", "p/models/model.json"), "is a program of torch.export"),
    "net.npz": (_npz(), "is a NumPy archive"),
    "net.npy": (_npy(), "is a NumPy array"),
    "net.keras": (_zip("config.json", "model.weights.h5"), "is a Keras file"),
    "some.zip": (_zip("weights.pth"), "is a zip archive of weights.pth; unpack it first"),
    "net.pth.gz": (b"\x1f\x8b\x08" + bytes(80), "is compressed by gzip"),
    "net.gguf": (b"GGUF" + bytes(80), "is a GGUF file"),
    "model.ckpt-3.index": (b"\x00\x00\x01" + bytes(80), "is the index of a TensorFlow checkpoint"),
    "model.ckpt-3.data-00000-of-00001": (bytes(80), "is a part of a TensorFlow checkpoint"),
    "saved_model.pb": (b"\x08\x01\x12" + bytes(80), "is a TensorFlow graph"),
    "flax_model.msgpack": (b"\x81\xa6" + bytes(80), "is a Flax file"),
    "net.tar": (_tar(), "is a tar archive"),
    "model.safetensors.index.json": (json.dumps({"weight_map": {}}).encode(), "lists the shards of a model"),
    "config.json": (b'{"a": 1}', "is a JSON file"),
}


@pytest.mark.parametrize("name", KINDS)
def test_file_of_another_kind_is_identified(name: str, tmp_path: Path) -> None:
    content, said = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert f"{name} {said}" in str(caught.value)
    assert "\n" not in str(caught.value)


class NormLast(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, classes)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.flatten(1)))


def test_the_classes_that_weights_know_are_the_classifier_s_where_a_norm_is_named_last(tmp_path: Path) -> None:
    torch.save(NormLast(7).state_dict(), tmp_path / "w.pth")
    assert outputs_of(NormLast(3), tmp_path / "w.pth") == 7


def test_module_version_of_weights_is_preserved(tmp_path: Path) -> None:
    from torchvision.models import mnasnet0_5

    network = mnasnet0_5(num_classes=3)
    save(network, tmp_path / "w.safetensors")
    load_into(mnasnet0_5(num_classes=3), tmp_path / "w.safetensors")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    load_into(mnasnet0_5(num_classes=3), tmp_path / "w.pth")


def test_infinite_mask_buffer_is_accepted(tmp_path: Path) -> None:
    def masked() -> nn.Module:
        network = nn.Linear(2, 2)
        network.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        return network

    save(masked(), tmp_path / "w.safetensors")
    load_into(masked(), tmp_path / "w.safetensors")
