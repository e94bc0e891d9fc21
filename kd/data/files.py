"""Readers of the official file formats: idx (MNIST and its kin) and the CIFAR python batches."""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.errors import InputError

Part = tuple[Tensor, Tensor]

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR_FILES: dict[str, dict[str, Any]] = {
    "CIFAR10": {
        "folder": "cifar-10-batches-py",
        "train": [f"data_batch_{i}" for i in range(1, 6)],
        "test": ["test_batch"],
        "names": ("batches.meta", "label_names"),
        "labels": "labels",
    },
    "CIFAR100": {
        "folder": "cifar-100-python",
        "train": ["train"],
        "test": ["test"],
        "names": ("meta", "fine_label_names"),
        "labels": "fine_labels",
    },
}


def idx(name: str, root: str, download: bool) -> tuple[Part, Part]:
    """Training and test part of an MNIST-like set in four idx files, ``.gz`` or not.

    They lie in ``root`` itself or in torchvision's ``root/<name>/raw``. ``download`` fetches them through
    torchvision, which checks their checksums.

    Raises:
        InputError: files absent or damaged; the file is named.
    """
    folders = [Path(root), Path(root) / name / "raw"]
    wanted = IDX_FILES["train"][0]
    found = _first_holding(folders, [wanted, wanted + ".gz"])
    if found is None:
        _fetch(name, root, download, f"{wanted}.gz", folders)
        found = folders[1]
    parts = []
    for images_file, labels_file in IDX_FILES.values():
        images, labels = _read_idx(found, images_file, 3), _read_idx(found, labels_file, 1)
        if len(images) != len(labels):
            raise InputError(f"{found / images_file} has {len(images)} images but {len(labels)} labels")
        parts.append((images.unsqueeze(1), labels.long()))
    return parts[0], parts[1]


def cifar(name: str, root: str, download: bool) -> tuple[Part, Part, tuple[str, ...]]:
    """Training and test part and class names of CIFAR-10 or CIFAR-100 as official python batches.

    ``root`` holds the batches' folder, or is it. ``download`` fetches it through torchvision, which checks
    its checksum. The batches are pickles; only arrays, lists, dictionaries and strings are let through.

    Raises:
        InputError: files absent or damaged; the file is named.
    """
    layout = CIFAR_FILES[name]
    folders = [Path(root), Path(root) / layout["folder"]]
    found = _first_holding(folders, [layout["train"][0]])
    if found is None or not (found / layout["names"][0]).is_file():
        _fetch(name, root, download, f"{layout['folder']}/{layout['train'][0]}", folders)
        found = folders[1]
    names = _read_pickle(found / layout["names"][0], layout["names"][1])
    train = _join([_read_batch(found / file, layout["labels"]) for file in layout["train"]])
    test = _join([_read_batch(found / file, layout["labels"]) for file in layout["test"]])
    return train, test, tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _first_holding(folders: list[Path], files: list[str]) -> Path | None:
    return next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)


def _fetch(name: str, root: str, download: bool, wanted: str, looked_in: list[Path]) -> None:
    if not download:
        state = "has no" if Path(root).is_dir() else "does not exist, so it has no"
        raise InputError(
            f"data.root={root} {state} {wanted}; looked in {', '.join(map(str, looked_in))}; "
            f"add data.download=true to fetch {name}, or give data.root the folder that holds it"
        )
    from torchvision import datasets

    try:
        getattr(datasets, name)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name} cannot be downloaded to {root}: {error}") from error


def _read_idx(folder: Path, file: str, dimensions: int) -> Tensor:
    path = next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
    if path is None:
        raise InputError(f"{folder} has no {file}.gz")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise InputError(f"{path} is no idx file of {dimensions} dimensions of bytes")
    shape = np.frombuffer(content[4:header], dtype=">i4").tolist()
    if len(content) - header != math.prod(shape):
        raise InputError(f"{path} is cut off: it holds {len(content) - header} bytes, its header says {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _read_batch(path: Path, labels_key: str) -> Part:
    pixels = _read_pickle(path, "data")
    labels = _read_pickle(path, labels_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
        raise InputError(f"{path} is no CIFAR batch: data and {labels_key} do not match")
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels, dtype=torch.int64)


def _join(parts: list[Part]) -> Part:
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


class _PlainUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers; refuses every other name, so that no code can run."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _read_pickle(path: Path, key: str) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with path.open("rb") as stream:
            content = _PlainUnpickler(stream, encoding="bytes").load()
        return content[key.encode()] if key.encode() in content else content[key]
    except Exception as error:
        raise InputError(f"{path} is damaged, or no CIFAR batch: {type(error).__name__} {error}") from error
