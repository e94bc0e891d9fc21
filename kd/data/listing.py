"""Which image files a data set has: class folders, csv files, Tiny-ImageNet's layout, webdataset's shards."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.data.decode import File, printable
from kd.data.layout import ANNOTATIONS, NONE, Layout, NoTraining, here, layout
from kd.data.scan import HIDDEN, LeftOut, claimed, class_folders, entries, extensions, folders, hidden, pictures
from kd.data.split import UNLABELLED
from kd.data.tables import Pairs, annotated, table
from kd.errors import InputError, nearest

MOST = 1_000_000  # classes that shards may have


class Listing(NamedTuple):
    """The files of each part, the names of the classes, and what there is to say.

    ``val`` is empty where the data set has no validation part; ``test`` where it has only one to train on.
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

    - parts of class folders: ``train/CLASS/**`` with ``val/CLASS/**`` or ``test/CLASS/**`` or both. A part alone beside
      ``train`` is the test part. ``Train``, ``valid``, ``validation`` and the like are known too.
    - class folders without parts: all of it trains
    - csv files of path and label, where ``train``, ``val`` or ``test`` name them
    - Tiny-ImageNet's: ``train/CLASS/images/*`` and ``val/images/*`` with ``val/val_annotations.txt``
    - shards: ``*train*.tar`` and ``*val*.tar`` or ``*test*.tar``, images and their ``.cls`` as webdataset writes them

    Args:
        root: the data set's folder.
        train: its training part, a folder or csv file below ``root``, where it is not called so; ``none`` for a test
            part alone.
        val: likewise.
        test: likewise.
        validates: whether a validation part that is found is to be used as one.

    Raises:
        InputError: absent or empty folders, classes that ``train`` does not have, damaged files.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(
            f"data.root={root} is no folder; it must hold train/CLASS/* and val/CLASS/*, class folders, or shards"
        )
    named = {"train": train, "val": val, "test": test}
    if shards := _shards_of(folder, named):
        files, names = _shards(folder, shards, train == NONE)
        return _roles(files, names, (), validates, tuple(_lacking(files, names)))
    return _folders(folder, named, validates)


def _folders(folder: Path, named: Mapping[str, str | None], validates: bool) -> Listing:
    """The files in folders or csv files."""
    found, left = layout(folder, named), LeftOut(folder)
    parts = _read(folder, found, left)
    names = _names(parts, found)
    numbers = {name: label for label, name in enumerate(names)}
    files = {}
    for part, pairs in parts.items():
        there = {name for _, name in pairs} - ({str(UNLABELLED)} if part == "train" and _tabled(found, part) else set())
        if there - set(names):
            place = found.parts[part]
            annotations = place / ANNOTATIONS
            raise _other_classes(folder, annotations if annotations.is_file() else place, names, there)
        files[part] = [File(path, numbers.get(name, UNLABELLED)) for path, name in pairs]
    shown = tuple(printable(name) for name in names)
    notes = (*found.notes, *_lacking(files, shown), *left.lines())
    return _roles(files, shown, found.named, validates, notes)


def _lacking(files: Mapping[str, list[File]], names: Sequence[str]) -> list[str]:
    """What to say of classes of which a part has no picture."""
    lines = []
    for part, given in files.items():
        there = {file.label for file in given}
        absent = [name for label, name in enumerate(names) if label not in there]
        if given and absent:
            lines.append(f"classes without a picture in {part} ({len(absent)}), first {absent[0]}")
    return lines


def lacks_training(root: str, named: Mapping[str, str | None]) -> bool:
    """Whether a data set has a test part alone; ``named`` are the parts that have a name of their own."""
    folder = Path(root)
    if not folder.is_dir():
        return False
    if shards := _shards_of(folder, named):
        return not any("train" in path.relative_to(folder).as_posix().lower() for path in shards)
    try:
        layout(folder, named)
    except NoTraining:
        return True
    except InputError:  # which is said when it is listed
        return False
    return False


def _shards_of(folder: Path, named: Mapping[str, str | None]) -> list[Path]:
    """The tar files of a data set, if it is made of them."""
    if set(named.values()) - {None, NONE} or any(path.is_dir() for path in folder.glob("train/*")):
        return []
    found = sorted(folder.glob("*.tar")) + sorted(folder.glob("*/*.tar"))
    return [path for path in found if _regular(path) and not hidden(path.name)]


def _roles(
    files: Mapping[str, list[File]],
    names: tuple[str, ...],
    named: Collection[str],
    validates: bool,
    notes: tuple[str, ...],
) -> Listing:
    """What each part serves for."""
    train, val, test = (files.get(part, []) for part in ("train", "val", "test"))
    if val and "val" not in named and not test:
        test, val, notes = val, [], (*notes, "the part val is the test set, as there is no other")
    elif val and "val" not in named and not validates:
        val, notes = [], (*notes, "the part val is not used, as data.val says what chooses the epoch")
    return Listing(train, test, names, val, notes)


def _read(root: Path, found: Layout, left: LeftOut) -> dict[str, Pairs]:
    """For each part the paths of its pictures and the names of their classes."""
    parts: dict[str, Pairs] = {}
    trees: dict[str, tuple[Path, dict[str, str]]] = {}
    for part, place in found.parts.items():
        if place.is_file():
            parts[part], again, elsewhere = table(place, root, part)
            left.count("rows that come twice", str(place), again)
            if elsewhere and list(found.parts.values()).count(place) == 1:
                left.count("rows of other parts, which data.val= and data.test= may name", str(place), elsewhere)
        elif (place / ANNOTATIONS).is_file():
            parts[part] = annotated(place, ANNOTATIONS)
        else:
            others = [other.resolve() for other in found.parts.values() if other != place]
            names = [name for name in folders(place) if (place / name).resolve() not in others]
            trees[part] = (place, class_folders(place, names, left))
    claims = claimed(trees)
    for part, (place, classes) in trees.items():
        parts[part] = []
        for name, real in classes.items():
            paths = pictures(place / name, real, part, claims, left)
            if not paths and part == "train" and place != root:
                raise InputError(f"data.root: {printable(place / name)} holds no pictures: {_inside(place / name)}")
            if not paths:
                left.count("folders without pictures", str(place / name))
            parts[part] += [(path, name) for path in paths]
        if not parts[part]:
            raise InputError(f"data.root: {printable(place)} holds no class folders with pictures: {_inside(place)}")
        for entry in entries(place):
            if hidden(entry.name):
                left.count(HIDDEN, entry.path)
            elif entry.name.lower().endswith(extensions()) and entry.is_file():
                left.count("pictures outside the class folders", entry.path)
    return {part: parts[part] for part in found.parts}


def _inside(place: Path) -> str:
    return f"it holds {here(place)}; pictures are {' '.join(extensions())}"


def _names(parts: Mapping[str, Pairs], found: Layout) -> tuple[str, ...]:
    """The classes in torchvision's order, that of their names as text; numbers of a csv file in their own order.

    In a training part's csv file, -1 is no class but stands for a label that is not known.
    """
    part = "train" if "train" in parts else "test"
    names = {name for _, name in parts[part]}
    if part == "train" and _tabled(found, part):
        names.discard(str(UNLABELLED))
    numbers = _tabled(found, part) and all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(names, key=int if numbers else str))


def _tabled(found: Layout, part: str) -> bool:
    """Whether a csv file names the part's pictures."""
    return found.parts[part].is_file()


def _other_classes(root: Path, place: Path, names: Sequence[str], there: Collection[str]) -> InputError:
    odd = sorted(set(names) ^ set(there))
    first = sorted(set(there) - set(names))[0]
    near = nearest(first, names)
    hint = f"; is {printable(first)!r} there the class {printable(near)!r}?" if near else ""
    shown = [printable(name) for name in odd[:3]]
    return InputError(f"{printable(root)}: train and {printable(place.name)} have other classes, first {shown}{hint}")


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # which is said when it is read


def _shards(folder: Path, shards: list[Path], alone: bool) -> tuple[dict[str, list[File]], tuple[str, ...]]:
    """The images of each part, and the classes, which have numbers alone."""
    parts: dict[str, list[File]] = {"train": [], "val": [], "test": []}
    for path in shards:
        name = str(path.relative_to(folder)).lower()
        part = next((part for part in parts if part in name), None)
        if part is None:
            raise InputError(f"{path} must have train, val or test in its name, to say what it serves for")
        parts[part] += _members(path)
    parts["train"] = [] if alone else parts["train"]
    if not (parts["train"] or alone) or not (parts["val"] or parts["test"]):
        absent = "test" if parts["train"] or alone else "train"
        raise InputError(f"data.root={folder} has no images in shards named *{absent}*.tar")
    count = 1 + max(file.label for files in parts.values() for file in files)
    if count > MOST:
        raise InputError(f"data.root={folder} has the label {count - 1:,} in a .cls; there may be {MOST:,} classes")
    return parts, tuple(map(str, range(count)))


def _members(path: Path) -> list[File]:
    """The images of one shard, in its order: where ``KEY.jpg`` lies, and the number that ``KEY.cls`` holds."""
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
        raise InputError(f"{path} is no whole shard: {error}") from error
    for key in images.keys() ^ labels.keys():
        raise InputError(f"{path} has no {'image' if key in labels else '.cls'} for {key}")
    if any(label < 0 for label in labels.values()):
        raise InputError(f"{path} has a label below 0")
    return [File(str(path), labels[key], *place) for key, place in images.items()]
