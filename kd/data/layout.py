"""Which folders of a data set are for training, validation and test, by their names or by options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kd.data.decode import printable
from kd.data.scan import entries, extensions, folders, hidden
from kd.data.tables import KINDS, WORDS
from kd.errors import InputError, nearest

ANNOTATIONS = "val_annotations.txt"
NONE = "none"
DEEP = 3  # levels below a class folder that are searched for its first image


class NoTraining(InputError):
    """A data set without a training part."""


class Layout(NamedTuple):
    """For each part its class folders or csv file, messages, and the parts that options name."""

    parts: dict[str, Path]
    notes: list[str]
    named: frozenset[str] = frozenset()


def layout(root: Path, options: Mapping[str, str | None]) -> Layout:
    """The parts of a data set: those that options name, then those with the name of a part, then the root itself.

    Args:
        root: the data set's folder.
        options: for ``train``, ``val`` and ``test`` a folder or csv file below ``root``, or None to search for it;
            ``train`` may be ``none`` if there is only a test part.

    Raises:
        InputError: no such parts; the message lists the folder's contents and the options.
    """
    named_parts = {part: _named_path(root, part, name) for part, name in options.items() if name not in (None, NONE)}
    used = [path.resolve() for path in named_parts.values()]
    called_parts, notes = _called(root)
    called_parts = {
        part: path for part, path in called_parts.items() if part not in named_parts and path.resolve() not in used
    }
    parts = {**called_parts, **named_parts}
    if options.get("train") == NONE:
        test = named_parts.get("test") or called_parts.get("test") or called_parts.get("val") or _top(root, [])
        return Layout({"test": test}, ["there is only a test part"], frozenset(named_parts))
    if "train" not in parts:
        if called_parts or "test" in named_parts:
            raise NoTraining(
                f"data.root={printable(root)} has no train part; it contains {contents_of(root)}: set "
                "data.train=FOLDER or a csv file of path and label (kd-evaluate and kd-export need only a test part)"
            )
        parts["train"] = _top(root, list(named_parts.values()))
        notes = ["class folders without parts", *_nested(parts["train"])]
    if "test" in called_parts and (why := _unlabelled(called_parts["test"])):
        notes.append(f"{called_parts['test'].name}/ is not used: {why}")
        del parts["test"]
    return Layout(parts, notes, frozenset(named_parts))


def contents_of(root: Path) -> str:
    """The contents of a folder, abridged."""
    inside = [entry for entry in entries(root) if not hidden(entry.name)]
    names = [printable(entry.name) + "/" * _safe_is_dir(root / entry.name) for entry in inside]
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "") if names else "nothing"


def _named_path(root: Path, part: str, name: str | None) -> Path:
    """The folder or csv file given by an option."""
    path = root / str(name)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in KINDS):
        return path
    choices = [entry.name for entry in entries(root) if not hidden(entry.name)]
    match = nearest(str(name), choices)
    hint = f"; did you mean {printable(match)!r}?" if match else ""
    raise InputError(
        f"data.{part}={name} is neither a folder nor a csv file below {printable(root)}{hint} "
        f"(it contains {contents_of(root)})"
    )


def _called(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders with the name of a part, and a message about the folders that are not used."""
    names = folders(root)
    called = {part: [name for name in names if name.lower() in words] for part, words in WORDS.items()}
    every = [name for several in called.values() for name in several]
    if len(every) == 1 and len(names) > 2 and not folders(root / every[0]):
        return {}, []  # class folders, one of which is called train or test
    for part, several in called.items():
        if len(several) > 1:
            both = " and ".join(f"{name}/" for name in several)
            raise InputError(f"data.root={printable(root)} contains {both}: select one with data.{part}={several[0]}")
    called_parts = {part: root / several[0] for part, several in called.items() if several}
    unused = [f"{printable(name)}/" for name in names if name not in every]
    return called_parts, [f"not used: {', '.join(unused[:5])}"] if unused and called_parts else []


def _top(root: Path, others: list[Path]) -> Path:
    """The root itself, if it contains class folders other than the folders that options name."""
    classes = [name for name in folders(root) if root / name not in others and _has_images(root / name, DEEP)]
    nested = [name for name in classes if _parts_in(root / name)]
    path = printable(root)
    if len(nested) == 1 and len(classes) == 1:
        raise InputError(f"data.root={path} contains only {nested[0]}/: did you mean data.root={path}/{nested[0]}?")
    if nested:
        raise InputError(
            f"data.root={path} contains {printable(nested[0])}/{folders(root / nested[0])[0]}/: parts within classes; "
            "expected PART/CLASS/*, such as train/CLASS/* and test/CLASS/*"
        )
    if len(classes) < 2:
        raise InputError(_unknown(root))
    return root


def _nested(root: Path) -> list[str]:
    """A warning about class folders that look like parts, as all of them contain the same folders."""
    outer = folders(root)
    inner = {tuple(folders(root / name)) for name in outer}
    if len(inner) != 1 or len(subfolders := inner.pop()) < 2:
        return []
    classes, names = (", ".join(f"{printable(name)}/" for name in some[:3]) for some in (outer, subfolders))
    return [
        f"WARNING: {classes} are used as classes, but each contains {names}: if these are the classes, set "
        f"data.train={printable(outer[-1])} and the like"
    ]


def _unknown(root: Path) -> str:
    tables = [entry.name for entry in entries(root) if entry.name.lower().endswith(KINDS)]
    example = f"data.train={tables[0]}" if tables else "data.train=labels.csv"
    return (
        f"data.root: {printable(root)} contains {contents_of(root)}: neither train/CLASS/* (with val/ or test/), nor "
        "two class folders of images, nor *train*.tar. Set data.train=, data.val= and data.test= to folders of class "
        f"folders, or to csv files of path and label: {example}"
    )


def _parts_in(folder: Path) -> list[str]:
    inside = {name.lower() for name in folders(folder)}
    return [part for part, words in WORDS.items() if inside & set(words)]


def _unlabelled(folder: Path) -> str | None:
    """Why a folder has no labels: images without class folders, or all of them in one; None if it has labels."""
    if not folder.is_dir() or (folder / ANNOTATIONS).is_file():
        return None
    inside = folders(folder)
    if not inside:
        return "it has no class folders, so its images have no labels"
    if len(inside) == 1 and inside[0].lower() in ("images", "unknown", "unlabeled", "unlabelled", "all", "test"):
        return f"all images are in {inside[0]}/, which is not a class"
    return None


def _has_images(folder: Path, depth: int) -> bool:
    """Whether a folder or one of its subfolders contains an image."""
    inside = entries(folder)
    if any(entry.name.lower().endswith(extensions()) and not hidden(entry.name) for entry in inside):
        return True
    return depth > 0 and any(_has_images(folder / name, depth - 1) for name in folders(folder))


def _safe_is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
