"""Readers of the official file formats: idx (MNIST and similar sets) and the CIFAR python batches."""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from collections.abc import Sequence
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


def idx(name: str, root: str, download: bool, classes: int) -> tuple[Part, Part]:
    """Training and test part of an MNIST-like set in four idx files, gzipped (``.gz``) or not.

    They are in ``root`` or in torchvision's ``root/<name>/raw``. ``download`` fetches them with torchvision,
    which verifies their checksums.

    Raises:
        InputError: absent or damaged files; the file is named.
    """
    folders = [Path(root), Path(root) / name / "raw"]
    expected = IDX_FILES["train"][0]
    source = first_holding(folders, [expected, expected + ".gz"])
    if source is None:
        fetch(name, root, download, f"{expected}.gz", folders)
        source = folders[1]
    parts: list[Part] = []
    for images_file, labels_file in IDX_FILES.values():
        images, labels = _read_idx(source, images_file, 3), _read_idx(source, labels_file, 1)
        check_labels(source / labels_file, labels.long(), classes, len(images))
        if parts and images.shape[1:] != parts[0][0].shape[2:]:
            shapes = f"{list(images.shape[1:])}, the training images {list(parts[0][0].shape[2:])}"
            raise InputError(f"{source / images_file} has images of shape {shapes}")
        parts.append((images.unsqueeze(1), labels.long()))
    return parts[0], parts[1]


def cifar(name: str, root: str, download: bool) -> tuple[Part, Part, tuple[str, ...]]:
    """Training and test part and class names of CIFAR-10 or CIFAR-100 as official python batches.

    ``root`` contains the batches' folder, or is that folder. ``download`` fetches it with torchvision, which
    verifies its checksum. The batches are pickles; only arrays, lists, dictionaries and strings are loaded.

    Raises:
        InputError: absent or damaged files; the file is named.
    """
    layout = CIFAR_FILES[name]
    folders = [Path(root), Path(root) / layout["folder"]]
    source = first_holding(folders, [layout["train"][0]])
    if source is None or not (source / layout["names"][0]).is_file():
        fetch(name, root, download, f"{layout['folder']}/{layout['train'][0]}", folders)
        source = folders[1]
    names = _read_names(source / layout["names"][0], layout["names"][1])
    train = _join([_read_batch(source / file, layout["labels"], len(names)) for file in layout["train"]])
    test = _join([_read_batch(source / file, layout["labels"], len(names)) for file in layout["test"]])
    return train, test, names


def first_holding(folders: list[Path], files: list[str]) -> Path | None:
    return next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)


def fetch(
    name: str, root: str, download: bool, expected: str, searched: list[Path], splits: Sequence[str] = ()
) -> None:
    """Downloads a torchvision data set, each of its ``splits``, if ``download`` is set.

    Raises:
        InputError: ``download`` is not set, with the folders in which ``expected`` was searched; or it fails.
    """
    if not download:
        state = "has no" if Path(root).is_dir() else "does not exist, so it has no"
        raise InputError(
            f"data.root={root} {state} {expected}; searched in {', '.join(map(str, searched))}; "
            f"set data.download=true to download {name}, or data.root to the folder that contains it"
        )
    from torchvision import datasets

    try:
        for options in [{"split": split} for split in splits] or [{}]:
            getattr(datasets, name)(root, download=True, **options)
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
        raise InputError(f"{path} is not an idx file of bytes with {dimensions} dimensions")
    shape = np.frombuffer(content[4:header], dtype=">u4").tolist()
    if len(content) - header != math.prod(shape):
        raise InputError(f"{path} is truncated: it has {len(content) - header} bytes, but its header declares {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def check_labels(path: Path, labels: Tensor, classes: int, images: int) -> None:
    """Raises InputError for a label file without labels, with another count than images, or with unknown classes."""
    if not len(labels):
        raise InputError(f"{path} has no labels")
    if len(labels) != images:
        raise InputError(f"{path} has {len(labels)} labels for {images} images")
    if labels.min() < 0 or labels.max() >= classes:
        invalid = labels[(labels < 0) | (labels >= classes)][0]
        raise InputError(f"{path} has the label {invalid}, expected 0 to {classes - 1}")


def _read_batch(path: Path, labels_key: str, classes: int) -> Part:
    pixels, values = _read_pickle(path, "data", labels_key)
    try:
        labels = torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a CIFAR batch: {labels_key} are not numbers") from error
    if labels.ndim != 1 or (labels.is_floating_point() and len(labels)):
        raise InputError(f"{path} is not a CIFAR batch: {labels_key} are {list(labels.shape)} of {labels.dtype}")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise InputError(f"{path} is not a CIFAR batch: data is not [N, 3072] of bytes")
    check_labels(path, labels.long(), classes, len(pixels))
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), labels.long()


def _read_names(path: Path, key: str) -> tuple[str, ...]:
    (values,) = _read_pickle(path, key)
    if not isinstance(values, list) or not values or not all(isinstance(name, (bytes, str)) for name in values):
        raise InputError(f"{path} is damaged: {key} is not a list of names")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else name for name in values)


def _join(parts: list[Part]) -> Part:
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


class _PlainUnpickler(pickle.Unpickler):
    """Loads numpy arrays and plain containers; refuses every other name, so that no code can run."""

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


def _read_pickle(path: Path, *keys: str) -> list[Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with path.open("rb") as stream:
            content = _PlainUnpickler(stream, encoding="bytes").load()
        return [content[key.encode()] if key.encode() in content else content[key] for key in keys]
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path} is damaged, or not a CIFAR batch: {type(error).__name__} {line}") from error
