"""Describes files that cannot be read as weights, and what to do about them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

START = 512  # bytes to read for recognising a kind
PLAIN = "in the program that wrote it, save plain weights: torch.save(model.state_dict(), file)"

MAGIC = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file itself; fetch that with: git lfs pull"),
    (b"\x89HDF", f"is an HDF5 file, as Keras writes; {PLAIN}"),
    (b"\x93NUMPY", f"is a NumPy array; {PLAIN}"),
    (b"GGUF", f"is a GGUF file; {PLAIN}"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (b"BZh", "is compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
)
SUFFIXES = (
    (".onnx", "is an ONNX file, which has a graph but not the names of the network's weights"),
    (".pb", "is a TensorFlow graph"),
    (".index", "is the index of a TensorFlow checkpoint"),
    (".meta", "is the graph of a TensorFlow checkpoint"),
    (".tflite", "is a TensorFlow Lite file"),
    (".msgpack", "is a Flax file"),
    (".pdparams", "is a Paddle file"),
    (".json", "is a JSON file, not weights"),
)


def describe_fault(path: Path, error: BaseException) -> str:
    """Describes a file that raised ``error`` when it was read as weights."""
    with path.open("rb") as file:
        start = file.read(START)
    text = start.lstrip().lower()
    if not text:
        return "is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a weights file; was the download refused?"
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return f"contains Python objects besides tensors, which could run code, so it is not loaded; {PLAIN}"
    return _kind(path, start) or f"is damaged, truncated, or not a weights file ({type(error).__name__})"


def _kind(path: Path, start: bytes) -> str | None:
    description = next((words for magic, words in MAGIC if start.startswith(magic)), None)
    if description is not None:
        return description
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        return _archive(path)
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it first"
    if path.name.endswith(".index.json"):
        return "lists the shards of a model; save them as one file: torch.save(model.state_dict(), file)"
    if ".data-0000" in path.name:
        return f"is a part of a TensorFlow checkpoint; {PLAIN}"
    words = next((words for suffix, words in SUFFIXES if path.suffix == suffix), None)
    return words and f"{words}; {PLAIN}"


def _archive(path: Path) -> str | None:
    """The kind of a zip archive; torch's own files are zip archives, too."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        return (
            "is a TorchScript archive; save its plain weights: "
            "torch.save(torch.jit.load(file).state_dict(), other_file)"
        )
    if any(name.endswith("archive_format") or "/models/" in name for name in names):
        return f"is a program of torch.export; {PLAIN}"
    if names and all(name.endswith(".npy") for name in names):
        return f"is a NumPy archive; {PLAIN}"
    if any(name.endswith(".weights.h5") for name in names):
        return f"is a Keras file; {PLAIN}"
    if any(name.endswith("data.pkl") for name in names):
        return None  # one of torch's own
    return f"is a zip archive of {', '.join(names[:3])}; unpack it first"
