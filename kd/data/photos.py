"""SVHN, STL-10 and Tiny-ImageNet: readers of their official files."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd.data.batch import Arrays
from kd.data.decode import File, decode
from kd.data.listing import listed
from kd.data.readers import Part, check_labels, fetch, first_holding
from kd.data.sources import DIGITS, data_root
from kd.errors import InputError
from kd.registry import sources


@sources.register("svhn")
def svhn(root: str = data_root(), download: bool = False) -> Arrays:
    """99,289 house numbers of 32x32 pixels (Netzer et al. 2011): ``train_32x32.mat`` and ``test_32x32.mat``."""
    files = ("train_32x32.mat", "test_32x32.mat")
    if first_holding([Path(root)], list(files)) is None:
        fetch("SVHN", root, download, files[0], [Path(root)], ("train", "test"))
    train, test = (_read_mat(Path(root) / file) for file in files)
    return Arrays(train, test, DIGITS)


def _read_mat(path: Path) -> Part:
    from scipy.io import loadmat  # comes with scikit-learn

    try:
        content = loadmat(str(path))
        images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # scipy's reader raises whatever comes along in a broken file
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path} is damaged, or not SVHN: {type(error).__name__} {line}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise InputError(f"{path} is not SVHN: X is {images.dtype} {list(images.shape)}")
    known = torch.from_numpy(np.where(labels == 10, 0, labels))  # the digit 0 is called 10
    check_labels(path, known, 10, images.shape[3])
    return torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), known


@sources.register("stl10")
def stl10(root: str = data_root(), extra: bool = False, download: bool = False) -> Arrays:
    """13,000 photographs of 96x96 pixels in 10 classes (Coates et al. 2011): the official binary files.

    ``root`` holds the folder ``stl10_binary``, or is it. ``extra`` adds its 100,000 unlabelled images (2.8 GB) to those
    that train, with the label -1.
    """
    folders = [Path(root), Path(root) / "stl10_binary"]
    found = first_holding(folders, ["train_X.bin"])
    if found is None:
        fetch("STL10", root, download, "stl10_binary/train_X.bin", folders)
        found = folders[1]
    names = tuple(_read_bytes(found / "class_names.txt").decode(errors="replace").split())
    if len(names) != 10:
        raise InputError(f"{found / 'class_names.txt'} holds {len(names)} words, not the names of 10 classes")
    train, test = (_read_binary(found, part, len(names)) for part in ("train", "test"))
    if extra:
        more = _read_images(found / "unlabeled_X.bin")
        train = torch.cat([train[0], more]), torch.cat([train[1], torch.full((len(more),), -1)])
    return Arrays(train, test, names)


def _read_binary(folder: Path, part: str, classes: int) -> Part:
    images, path = _read_images(folder / f"{part}_X.bin"), folder / f"{part}_y.bin"
    labels = torch.from_numpy(np.frombuffer(_read_bytes(path), np.uint8).astype(np.int64)) - 1
    check_labels(path, labels, classes, len(images))
    return images, labels


def _read_images(path: Path) -> Tensor:
    content = np.frombuffer(_read_bytes(path), np.uint8)
    if not len(content) or len(content) % (3 * 96 * 96):
        raise InputError(f"{path} is cut off: {len(content)} bytes are no whole number of 96x96 images")
    return torch.from_numpy(np.ascontiguousarray(content.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


@sources.register("tiny_imagenet")
def tiny_imagenet(root: str = data_root()) -> Arrays:
    """110,000 photographs of 64x64 pixels in 200 classes, decoded into memory (1.4 GB).

    ``root`` holds the folder ``tiny-imagenet-200``, or is it: ``train/CLASS/images/*.JPEG`` and ``val/images`` with
    ``val_annotations.txt``; val is the test set here.
    """
    below = Path(root) / "tiny-imagenet-200"
    found = listed(str(below if below.is_dir() else root))
    return Arrays(_decoded(found.train, 64), _decoded(found.test, 64), found.names)


def _decoded(files: list[File], size: int) -> Part:
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)

    def fill(place: int) -> None:
        image = decode(files[place])
        if image.shape != images.shape[1:]:
            raise InputError(f"{files[place]} is of {image.shape[2]}x{image.shape[1]} pixels, not {size}x{size}")
        images[place] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(len(files))))
    return images, torch.tensor([file.label for file in files])
