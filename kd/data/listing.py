"""Which image files a data set has: class folders as ImageNet has them, Tiny-ImageNet's layout, webdataset's shards."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kd.data.decode import File
from kd.errors import InputError, unknown

if TYPE_CHECKING:  # torchvision takes a second to import
    from torchvision.datasets import ImageFolder

ANNOTATIONS = "val_annotations.txt"


class Listing(NamedTuple):
    """The files that train and test, and the names of the classes."""

    train: list[File]
    test: list[File]
    names: tuple[str, ...]


def listed(root: str) -> Listing:
    """The files below ``root``, in one of three layouts.

    - class folders: ``train/CLASS/**`` and ``val/CLASS/**`` (or ``test/CLASS/**``)
    - Tiny-ImageNet's: ``train/CLASS/images/*`` and ``val/images/*`` with ``val/val_annotations.txt``
    - shards: ``*train*.tar`` and ``*val*.tar`` (or ``*test*.tar``), images and their ``.cls`` as webdataset writes them

    Raises:
        InputError: absent or empty folders, other classes in ``val`` than in ``train``, damaged files.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"data.root={root} is no folder; it must hold train/CLASS/* and val/CLASS/*, or shards")
    shards = sorted(folder.glob("*.tar")) + sorted(folder.glob("*/*.tar"))
    if shards and not any(path.is_dir() for path in folder.glob("train/*")):
        return _shards(folder, shards)
    train = _classes(folder / "train")
    names = tuple(train.classes)
    files = [File(path, label) for path, label in train.samples]
    if (folder / "val" / ANNOTATIONS).is_file():
        return Listing(files, _annotated(folder / "val", names), names)
    held = folder / "test" if (folder / "test").is_dir() and not (folder / "val").is_dir() else folder / "val"
    test = _classes(held)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(f"{root}: train and {held.name} have other classes, first {odd[:3]}")
    return Listing(files, [File(path, label) for path, label in test.samples], names)


def _classes(folder: Path) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder))
    except OSError as error:
        line = str(error).splitlines()[0]
        raise InputError(f"data.root: {folder} holds no class folders with images: {line}") from error


def _annotated(folder: Path, names: tuple[str, ...]) -> list[File]:
    labels, found = {name: label for label, name in enumerate(names)}, []
    path = folder / ANNOTATIONS
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        label = rest.split("\t")[0]
        if not name or not label:
            raise InputError(f"{path} line {number} is not FILE, tab, CLASS: {line[:60]!r}")
        if label not in labels:
            raise unknown(f"class in {path} line {number}:", label, names)
        found.append(File(str(folder / "images" / name), labels[label]))
    if not found:
        raise InputError(f"{path} is empty")
    return found


def _shards(folder: Path, shards: list[Path]) -> Listing:
    parts: dict[str, list[File]] = {"train": [], "test": []}
    for path in shards:
        name = str(path.relative_to(folder))
        part = "train" if "train" in name else "test" if "val" in name or "test" in name else None
        if part is None:
            raise InputError(f"{path} must have train, val or test in its name, to say what it serves for")
        parts[part] += _members(path)
    if absent := [part for part, files in parts.items() if not files]:
        raise InputError(f"data.root={folder} has no images in shards named *{absent[0]}*.tar")
    count = 1 + max(file.label for files in parts.values() for file in files)
    return Listing(parts["train"], parts["test"], tuple(map(str, range(count))))


def _members(path: Path) -> list[File]:
    """The images of one shard, in its order: where ``KEY.jpg`` lies, and the number that ``KEY.cls`` holds."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                key, _, kind = member.name.rpartition(".")
                if f".{kind.lower()}" in IMG_EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
                elif kind == "cls":
                    content = shard.extractfile(member)
                    labels[key] = int(content.read()) if content is not None else -1
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no whole shard: {error}") from error
    for key in images.keys() ^ labels.keys():
        raise InputError(f"{path} has no {'image' if key in labels else '.cls'} for {key}")
    if any(label < 0 for label in labels.values()):
        raise InputError(f"{path} has a label below 0")
    return [File(str(path), labels[key], *place) for key, place in images.items()]
