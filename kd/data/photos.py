"""Readers of the official files of SVHN, STL-10 and Tiny-ImageNet."""

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
    from scipy.io import loadmat  # a dependency of scikit-learn

    try:
        content = loadmat(str(path))
        images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # scipy's reader raises any exception on a broken file
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path} is damaged, or not an SVHN file: {type(error).__name__} {line}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise InputError(f"{path} is not an SVHN file: X is {images.dtype} {list(images.shape)}")
    digits = torch.from_numpy(np.where(labels == 10, 0, labels))  # the digit 0 has the label 10
    check_labels(path, digits, 10, images.shape[3])
    return torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), digits


@sources.register("stl10")
def stl10(root: str = data_root(), extra: bool = False, download: bool = False) -> Arrays:
    """13,000 photographs of 96x96 pixels in 10 classes (Coates et al. 2011): the official binary files.

    ``root`` contains the folder ``stl10_binary``, or is that folder. ``extra`` adds its 100,000 unlabelled images
    (2.8 GB) to the training set, with the label -1.
    """
    folders = [Path(root), Path(root) / "stl10_binary"]
    folder = first_holding(folders, ["train_X.bin"])
    if folder is None:
        fetch("STL10", root, download, "stl10_binary/train_X.bin", folders)
        folder = folders[1]
    names = tuple(_read_bytes(folder / "class_names.txt").decode(errors="replace").split())
    if len(names) != 10:
        raise InputError(f"{folder / 'class_names.txt'} has {len(names)} words, expected the names of 10 classes")
    train, test = (_read_binary(folder, part, len(names)) for part in ("train", "test"))
    if extra:
        extra_images = _read_images(folder / "unlabeled_X.bin")
        train = torch.cat([train[0], extra_images]), torch.cat([train[1], torch.full((len(extra_images),), -1)])
    return Arrays(train, test, names)


def _read_binary(folder: Path, part: str, classes: int) -> Part:
    images, path = _read_images(folder / f"{part}_X.bin"), folder / f"{part}_y.bin"
    labels = torch.from_numpy(np.frombuffer(_read_bytes(path), np.uint8).astype(np.int64)) - 1
    check_labels(path, labels, classes, len(images))
    return images, labels


def _read_images(path: Path) -> Tensor:
    content = np.frombuffer(_read_bytes(path), np.uint8)
    if not len(content) or len(content) % (3 * 96 * 96):
        raise InputError(f"{path} is truncated: {len(content)} bytes are not a multiple of 96x96 images")
    return torch.from_numpy(np.ascontiguousarray(content.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


@sources.register("tiny_imagenet")
def tiny_imagenet(root: str = data_root()) -> Arrays:
    """110,000 photographs of 64x64 pixels in 200 classes, decoded into memory (1.4 GB).

    ``root`` contains the folder ``tiny-imagenet-200``, or is that folder: ``train/CLASS/images/*.JPEG`` and
    ``val/images`` with ``val_annotations.txt``; val is used as the test set.
    """
    below = Path(root) / "tiny-imagenet-200"
    listing = listed(str(below if below.is_dir() else root))
    return Arrays(_decode_all(listing.train, 64), _decode_all(listing.test, 64), listing.names)


def _decode_all(files: list[File], size: int) -> Part:
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = decode(files[i])
        if image.shape != images.shape[1:]:
            raise InputError(f"{files[i]} has {image.shape[2]}x{image.shape[1]} pixels, not {size}x{size}")
        images[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(len(files))))
    return images, torch.tensor([file.label for file in files])
