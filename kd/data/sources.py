"""Data sets: each is one function from options to :class:`~kd.data.batch.Arrays`."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from kd.data.batch import Arrays
from kd.data.readers import cifar, idx
from kd.errors import InputError
from kd.registry import sources
from kd.rng import hashed

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def data_root() -> str:
    """The default of ``data.root``: ``$KD_DATA``, otherwise ``data``."""
    return os.environ.get("KD_DATA", "data")


@sources.register("digits")
def digits(test_share: float = 0.2) -> Arrays:
    """1,797 handwritten digits of 8x8 pixels that ship inside scikit-learn; no files, no network.

    The first ``1 - test_share`` of them are the training set and the last ones the test set, as their writers differ.
    """
    from sklearn.datasets import load_digits

    if not 0 < test_share < 1:
        raise InputError(f"test_share must lie in (0, 1), got {test_share}")
    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    cut = round(len(labels) * (1 - test_share))
    return Arrays((images[:cut], labels[:cut]), (images[cut:], labels[cut:]), DIGITS)


@sources.register("synthetic")
def synthetic(
    shape: list[int] = [3, 32, 32],  # noqa: B006 (never changed; Hydra shows it)
    classes: int = 10,
    train: int = 2000,
    test: int = 500,
    noise: float = 0.7,
    seed: int = 0,
) -> Arrays:
    """Learnable images of any shape: a smooth random pattern for each class, plus noise, with a fixed seed.

    ``noise`` is the fraction of noise in each pixel, in [0, 1].
    """
    three = isinstance(shape, (list, tuple)) and len(shape) == 3 and min(shape) > 0
    if not three or classes < 2 or min(train, test) < 1 or not 0 <= noise <= 1:
        raise InputError(
            "synthetic needs shape=[C,H,W], classes of 2 or more, train and test of 1 or more, noise in [0, 1]"
        )
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(classes, shape[0], 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, size=list(shape[1:]), mode="bilinear")

    def part(count: int, stream: int) -> tuple[Tensor, Tensor]:
        labels = hashed(seed, 0, torch.arange(count), stream) % classes
        noisy = (1 - noise) * patterns[labels] + noise * torch.rand(count, *shape, generator=generator)
        return (noisy * 255).round().to(torch.uint8), labels

    return Arrays(part(train, 1), part(test, 2), tuple(str(c) for c in range(classes)))


@sources.register("mnist")
def mnist(root: str = data_root(), download: bool = False) -> Arrays:
    """70,000 handwritten digits of 28x28 pixels (LeCun et al. 1998). Files as for ``fashion_mnist``."""
    train, test = idx("MNIST", root, download, len(DIGITS))
    return Arrays(train, test, DIGITS, (0.1307,), (0.3081,))


@sources.register("fashion_mnist")
def fashion_mnist(root: str = data_root(), download: bool = False) -> Arrays:
    """70,000 images of clothing of 28x28 pixels (Xiao et al. 2017, arXiv:1708.07747).

    ``root`` contains the four idx files (``.gz`` or not), or torchvision's ``FashionMNIST/raw``.
    """
    train, test = idx("FashionMNIST", root, download, len(FASHION))
    return Arrays(train, test, FASHION, (0.2860,), (0.3530,))


@sources.register("cifar10")
def cifar10(root: str = data_root(), download: bool = False) -> Arrays:
    """60,000 photographs of 32x32 pixels in 10 classes (Krizhevsky 2009): the official python batches."""
    train, test, names = cifar("CIFAR10", root, download)
    return Arrays(train, test, names, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@sources.register("cifar100")
def cifar100(root: str = data_root(), download: bool = False) -> Arrays:
    """60,000 photographs of 32x32 pixels in 100 classes (Krizhevsky 2009): the official python batches.

    Mean and standard deviation are those of RepDistiller and mdistiller, whose teachers expect them.
    """
    train, test, names = cifar("CIFAR100", root, download)
    return Arrays(train, test, names, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
