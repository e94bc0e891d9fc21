"""The image files of a data set: class folders, csv files, Tiny-ImageNet's layout, webdataset's shards."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.data.decode import File, printable
from kd.data.layout import ANNOTATIONS, NONE, Layout, NoTraining, contents_of, layout
from kd.data.scan import HIDDEN, Skipped, claimed, class_folders, entries, extensions, folders, hidden, image_paths
from kd.data.split import UNLABELLED
from kd.data.tables import Pairs, annotated, table
from kd.errors import InputError, nearest

MAX_CLASSES = 1_000_000  # of shards


class Listing(NamedTuple):
    """The files of each part, the class names, and messages.

    ``val`` is empty if the data set has no validation part, ``test`` if it has only a training part.
    """

    train: list[File]
    test: list[File]
    names: tuple[str, ...]
    val: list[File] = []
    notes: tuple[str, ...] = ()


def listed(
    root: str, train: str | None = None, val: str | None = None, test: str | None = None, validates: bool = True
) -> Listing:
    """The files below ``root``, in one of these layouts.

    - parts of class folders: ``train/CLASS/**`` with ``val/CLASS/**`` or ``test/CLASS/**`` or both. A single part
      besides ``train`` is the test part. ``Train``, ``valid``, ``validation`` and the like are recognised too.
    - class folders without parts: all images are for training
    - csv files of path and label, if ``train``, ``val`` or ``test`` name them
    - Tiny-ImageNet's: ``train/CLASS/images/*`` and ``val/images/*`` with ``val/val_annotations.txt``
    - shards: ``*train*.tar`` and ``*val*.tar`` or ``*test*.tar``, images and their ``.cls`` as webdataset writes them

    Args:
        root: the data set's folder.
        train: its training part, a folder or csv file below ``root``, if it has another name; ``none`` if there is only
            a test part.
        val: likewise.
        test: likewise.
        validates: whether an existing validation part is used as one.

    Raises:
        InputError: absent or empty folders, classes that ``train`` does not have, damaged files.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(
            f"data.root={root} is not a folder; it must contain train/CLASS/* and val/CLASS/*, class folders, or shards"
        )
    named = {"train": train, "val": val, "test": test}
    if shards := _shards_of(folder, named):
        files, names = _shards(folder, shards, train == NONE)
        return _roles(files, names, (), validates, tuple(_lacking(files, names)))
    return _folders(folder, named, validates)


def _folders(folder: Path, named: Mapping[str, str | None], validates: bool) -> Listing:
    """The files in folders or csv files."""
    structure, skipped = layout(folder, named), Skipped(folder)
    parts = _read(folder, structure, skipped)
    names = _names(parts, structure)
    numbers = {name: label for label, name in enumerate(names)}
    files = {}
    for part, pairs in parts.items():
        unlabelled = {str(UNLABELLED)} if part == "train" and _tabled(structure, part) else set()
        present = {name for _, name in pairs} - unlabelled
        if present - set(names):
            path = structure.parts[part]
            annotations = path / ANNOTATIONS
            raise _other_classes(folder, annotations if annotations.is_file() else path, names, present)
        files[part] = [File(path, numbers.get(name, UNLABELLED)) for path, name in pairs]
    printable_names = tuple(printable(name) for name in names)
    notes = (*structure.notes, *_lacking(files, printable_names), *skipped.messages())
    return _roles(files, printable_names, structure.named, validates, notes)


def _lacking(files: Mapping[str, list[File]], names: Sequence[str]) -> list[str]:
    """Messages about classes without an image in a part."""
    messages = []
    for part, part_files in files.items():
        present = {file.label for file in part_files}
        absent = [name for label, name in enumerate(names) if label not in present]
        if part_files and absent:
            messages.append(f"classes without an image in {part} ({len(absent)}), first {absent[0]}")
    return messages


def lacks_training(root: str, named: Mapping[str, str | None]) -> bool:
    """Whether a data set has only a test part; ``named`` are the parts that options name."""
    folder = Path(root)
    if not folder.is_dir():
        return False
    if shards := _shards_of(folder, named):
        return not any("train" in path.relative_to(folder).as_posix().lower() for path in shards)
    try:
        layout(folder, named)
    except NoTraining:
        return True
    except InputError:  # reported when the data set is listed
        return False
    return False


def _shards_of(folder: Path, named: Mapping[str, str | None]) -> list[Path]:
    """The tar files of a data set, if it consists of shards."""
    if set(named.values()) - {None, NONE} or any(path.is_dir() for path in folder.glob("train/*")):
        return []
    paths = sorted(folder.glob("*.tar")) + sorted(folder.glob("*/*.tar"))
    return [path for path in paths if _regular(path) and not hidden(path.name)]


def _roles(
    files: Mapping[str, list[File]],
    names: tuple[str, ...],
    named: Collection[str],
    validates: bool,
    notes: tuple[str, ...],
) -> Listing:
    """Assigns the parts to training, validation and test."""
    train, val, test = (files.get(part, []) for part in ("train", "val", "test"))
    if val and "val" not in named and not test:
        test, val, notes = val, [], (*notes, "the val part is used as the test set, as there is no test part")
    elif val and "val" not in named and not validates:
        val, notes = [], (*notes, "the val part is not used, as data.val is set")
    return Listing(train, test, names, val, notes)


def _read(root: Path, structure: Layout, skipped: Skipped) -> dict[str, Pairs]:
    """For each part the paths of its images and the names of their classes."""
    parts: dict[str, Pairs] = {}
    trees: dict[str, tuple[Path, dict[str, str]]] = {}
    for part, path in structure.parts.items():
        if path.is_file():
            parts[part], duplicates, elsewhere = table(path, root, part)
            skipped.count("duplicate rows", str(path), duplicates)
            if elsewhere and list(structure.parts.values()).count(path) == 1:
                skipped.count("rows of other parts, for data.val= and data.test=", str(path), elsewhere)
        elif (path / ANNOTATIONS).is_file():
            parts[part] = annotated(path, ANNOTATIONS)
        else:
            others = [other.resolve() for other in structure.parts.values() if other != path]
            names = [name for name in folders(path) if (path / name).resolve() not in others]
            trees[part] = (path, class_folders(path, names, skipped))
    claims = claimed(trees)
    for part, (path, classes) in trees.items():
        parts[part] = []
        for name, real in classes.items():
            paths = image_paths(path / name, real, part, claims, skipped)
            if not paths and part == "train" and path != root:
                raise InputError(f"data.root: {printable(path / name)} has no images: {_inside(path / name)}")
            if not paths:
                skipped.count("folders without images", str(path / name))
            parts[part] += [(path, name) for path in paths]
        if not parts[part]:
            raise InputError(f"data.root: {printable(path)} has no class folders with images: {_inside(path)}")
        for entry in entries(path):
            if hidden(entry.name):
                skipped.count(HIDDEN, entry.path)
            elif entry.name.lower().endswith(extensions()) and entry.is_file():
                skipped.count("images outside the class folders", entry.path)
    return {part: parts[part] for part in structure.parts}


def _inside(path: Path) -> str:
    return f"it contains {contents_of(path)}; image formats: {' '.join(extensions())}"


def _names(parts: Mapping[str, Pairs], structure: Layout) -> tuple[str, ...]:
    """The classes in torchvision's order, by name as text; numeric labels of a csv file in numeric order.

    In a training part's csv file, -1 is not a class but an unknown label.
    """
    part = "train" if "train" in parts else "test"
    names = {name for _, name in parts[part]}
    if part == "train" and _tabled(structure, part):
        names.discard(str(UNLABELLED))
    numbers = _tabled(structure, part) and all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(names, key=int if numbers else str))


def _tabled(structure: Layout, part: str) -> bool:
    """Whether the part is a csv file."""
    return structure.parts[part].is_file()


def _other_classes(root: Path, path: Path, names: Sequence[str], present: Collection[str]) -> InputError:
    different = sorted(set(names) ^ set(present))
    first = sorted(set(present) - set(names))[0]
    match = nearest(first, names)
    hint = f"; does {printable(first)!r} mean {printable(match)!r}?" if match else ""
    printable_names = [printable(name) for name in different[:3]]
    return InputError(
        f"{printable(root)}: train and {printable(path.name)} have different classes, first {printable_names}{hint}"
    )


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # reported when it is read


def _shards(folder: Path, shards: list[Path], test_only: bool) -> tuple[dict[str, list[File]], tuple[str, ...]]:
    """The images of each part, and the classes, which are numbers."""
    parts: dict[str, list[File]] = {"train": [], "val": [], "test": []}
    for path in shards:
        name = str(path.relative_to(folder)).lower()
        part = next((part for part in parts if part in name), None)
        if part is None:
            raise InputError(f"{path} must have train, val or test in its name")
        parts[part] += _members(path)
    parts["train"] = [] if test_only else parts["train"]
    if not (parts["train"] or test_only) or not (parts["val"] or parts["test"]):
        absent = "test" if parts["train"] or test_only else "train"
        raise InputError(f"data.root={folder} has no images in shards named *{absent}*.tar")
    count = 1 + max(file.label for files in parts.values() for file in files)
    if count > MAX_CLASSES:
        raise InputError(
            f"data.root={folder} has the label {count - 1:,} in a .cls file; the maximum is {MAX_CLASSES:,} classes"
        )
    return parts, tuple(map(str, range(count)))


def _members(path: Path) -> list[File]:
    """The images of one shard in order: the position of ``KEY.jpg`` in it, and the number in ``KEY.cls``."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                key, _, kind = member.name.rpartition(".")
                if hidden(key.rpartition("/")[2]):
                    continue
                if f".{kind.lower()}" in extensions():
                    images[key] = (member.offset_data, member.size)
                elif kind == "cls":
                    content = shard.extractfile(member)
                    labels[key] = int(content.read(32)) if content is not None else -1
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a complete shard: {error}") from error
    for key in images.keys() ^ labels.keys():
        raise InputError(f"{path} has no {'image' if key in labels else '.cls'} for {key}")
    if any(label < 0 for label in labels.values()):
        raise InputError(f"{path} has a negative label")
    return [File(str(path), labels[key], *region) for key, region in images.items()]
