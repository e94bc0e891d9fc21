"""Data sets of the Hugging Face hub, through its package ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kd.data.batch import Arrays
from kd.data.decode import pixels
from kd.errors import InputError, unknown
from kd.registry import sources

GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")

if TYPE_CHECKING:  # torchvision takes a second to import
    from torchvision.transforms import v2


@sources.register("huggingface")
def huggingface(
    name: str = "",
    subset: str | None = None,
    train: str = "train",
    test: str = "test",
    image: str = "",
    label: str = "",
    size: int = 0,
) -> Arrays:
    """A data set of the Hugging Face hub, or a folder written by ``save_to_disk``, read into memory.

    Args:
        name: as on the hub, for example ``uoft-cs/cifar10``, or the folder.
        subset: its configuration, if it has several.
        train: the training split.
        test: the test split.
        image: the column of images; empty for the first one of that type.
        label: the column of class numbers, integers or names; empty for the first one of class numbers, otherwise
            ``label`` or ``labels``.
        size: height and width to which images are resized and cropped; 0 if all have the same size.

    Raises:
        InputError: the package, the data set, a split or a column is absent, or images have several sizes.
    """
    if not name:
        raise InputError("data.name must be given: a data set of the Hugging Face hub, for example uoft-cs/cifar10")
    from torchvision.transforms import v2

    splits = _loaded(name, subset)
    for part in (train, test):
        if not hasattr(splits, "keys") or part not in splits:
            raise unknown(f"split of {name}", part, getattr(splits, "keys", list)())
    columns = splits[train].features
    image = _column(columns, image, "Image", "image")
    label = _label_column(columns, label)
    resize = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)]) if size else None
    parts = [_read(splits[part], image, label, resize, f"{name} ({part})") for part in (train, test)]
    return Arrays(parts[0], parts[1], tuple(getattr(columns[label], "names", ())))


def _loaded(name: str, subset: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data=huggingface needs the package datasets (pip install datasets): {error}") from error
    try:
        saved = (Path(name) / "dataset_dict.json").is_file()
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, subset)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"data.name={name} cannot be loaded: {line}") from error


def _label_column(columns: Any, name_of_column: str) -> str:
    """The column of labels: one of class numbers if there is any, otherwise ``label`` or ``labels``."""
    plain = _of_type(columns, "Value")
    named = next((name for name in ("label", "labels") if name in plain), "")
    if name_of_column in plain or (not name_of_column and named and not _of_type(columns, "ClassLabel")):
        return name_of_column or named
    return _column(columns, name_of_column, "ClassLabel", "label")


def _of_type(columns: Any, kind: str) -> list[str]:
    return [name for name, feature in columns.items() if type(feature).__name__ == kind]


def _column(columns: Any, name_of_column: str, kind: str, option: str) -> str:
    fitting = _of_type(columns, kind)
    if name_of_column and name_of_column not in fitting:
        raise unknown(f"data.{option} of type {kind}", name_of_column, fitting)
    if not fitting:
        raise InputError(f"data.{option}: none of the columns {list(columns)} is of type {kind}")
    return name_of_column or fitting[0]


def _read(rows: Any, image: str, label: str, resize: v2.Transform | None, where: str) -> tuple[Tensor, Any]:
    images: list[Tensor] = []
    greyscale = True
    for row in range(len(rows)):
        try:
            encoded = rows[row][image]
            decoded = pixels(encoded)
            greyscale = greyscale and encoded.mode in GREY
        except Exception as error:
            raise InputError(f"image {row} of {where} cannot be decoded: {error}") from error
        images.append(resize(decoded) if resize else decoded)
        if images[-1].shape != images[0].shape:
            sizes = f"{list(images[0].shape)} and {list(images[-1].shape)}"
            raise InputError(f"images of {where} differ in shape, {sizes}: set data.size=PIXELS")
    if not images:
        raise InputError(f"{where} has no images")
    return torch.stack(images)[:, : 1 if greyscale else 3], list(rows[label][:])
