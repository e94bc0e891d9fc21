"""What the folders of a data set serve for: training, validation and test, by their names or by the user's word."""

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
DEEP = 3  # folders below a class folder in which its first picture is looked for


class NoTraining(InputError):
    """A data set without a training part."""


class Layout(NamedTuple):
    """For each part its class folders or csv file, what there is to say, and the parts that the user named."""

    parts: dict[str, Path]
    notes: list[str]
    named: frozenset[str] = frozenset()


def layout(root: Path, named: Mapping[str, str | None]) -> Layout:
    """The parts of a data set: those that are named, then those that are called as a part, then the root itself.

    Args:
        root: the data set's folder.
        named: for ``train``, ``val`` and ``test`` a folder or csv file below ``root``, or None to look for it;
            ``train`` may be ``none``: then there is a test part alone.

    Raises:
        InputError: nothing of the kind; what is there is said, and how it can be named.
    """
    given = {part: _place(root, part, name) for part, name in named.items() if name not in (None, NONE)}
    used = [place.resolve() for place in given.values()]
    found, notes = _called(root)
    found = {part: place for part, place in found.items() if part not in given and place.resolve() not in used}
    parts = {**found, **given}
    if named.get("train") == NONE:
        test = given.get("test") or found.get("test") or found.get("val") or _top(root, [])
        return Layout({"test": test}, ["there is a test part alone"], frozenset(given))
    if "train" not in parts:
        if found or "test" in given:
            raise NoTraining(
                f"data.root={printable(root)} holds no train part; it holds {here(root)}: give data.train=FOLDER or a "
                "csv file of path and label (kd-evaluate and kd-export take a test part alone)"
            )
        parts["train"] = _top(root, list(given.values()))
        notes = ["there are class folders and no parts", *_nested(parts["train"])]
    if "test" in found and (why := _unlabelled(found["test"])):
        notes.append(f"{found['test'].name}/ is not used: {why}")
        del parts["test"]
    return Layout(parts, notes, frozenset(given))


def here(root: Path) -> str:
    """What a folder holds, in a few words."""
    inside = [entry for entry in entries(root) if not hidden(entry.name)]
    names = [printable(entry.name) + "/" * _safe_is_dir(root / entry.name) for entry in inside]
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "") if names else "nothing"


def _place(root: Path, part: str, name: str | None) -> Path:
    """The folder or csv file that an option names."""
    place = root / str(name)
    if place.is_dir() or (place.is_file() and place.suffix.lower() in KINDS):
        return place
    choices = [entry.name for entry in entries(root) if not hidden(entry.name)]
    near = nearest(str(name), choices)
    hint = f"; did you mean {printable(near)!r}?" if near else ""
    raise InputError(
        f"data.{part}={name} is neither a folder nor a csv file below {printable(root)}{hint} (it holds {here(root)})"
    )


def _called(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders that are called as a part, and which others are not used beside them."""
    names = folders(root)
    called = {part: [name for name in names if name.lower() in words] for part, words in WORDS.items()}
    every = [name for several in called.values() for name in several]
    if len(every) == 1 and len(names) > 2 and not folders(root / every[0]):
        return {}, []  # class folders, one of which is called train or test
    for part, several in called.items():
        if len(several) > 1:
            both = " and ".join(f"{name}/" for name in several)
            raise InputError(f"data.root={printable(root)} holds {both}: choose by data.{part}={several[0]}")
    found = {part: root / several[0] for part, several in called.items() if several}
    rest = [f"{printable(name)}/" for name in names if name not in every]
    return found, [f"not used: {', '.join(rest[:5])}"] if rest and found else []


def _top(root: Path, others: list[Path]) -> Path:
    """The root itself, if it holds class folders besides the folders that are named already."""
    classes = [name for name in folders(root) if root / name not in others and _shows(root / name, DEEP)]
    within = [name for name in classes if _parts_in(root / name)]
    place = printable(root)
    if len(within) == 1 and len(classes) == 1:
        raise InputError(f"data.root={place} holds {within[0]}/ alone: did you mean data.root={place}/{within[0]}?")
    if within:
        raise InputError(
            f"data.root={place} holds {printable(within[0])}/{folders(root / within[0])[0]}/: parts within classes; "
            "what is needed is PART/CLASS/*, such as train/CLASS/* and test/CLASS/*"
        )
    if len(classes) < 2:
        raise InputError(_unknown(root))
    return root


def _nested(root: Path) -> list[str]:
    """What to say of class folders that look like parts: each holds the same folders."""
    outer = folders(root)
    inner = {tuple(folders(root / name)) for name in outer}
    if len(inner) != 1 or len(within := inner.pop()) < 2:
        return []
    holders, names = (", ".join(f"{printable(name)}/" for name in some[:3]) for some in (outer, within))
    return [
        f"WARNING: {holders} are taken for classes, but each holds {names}: if these are the classes, name the parts "
        f"by data.train={printable(outer[-1])} and the like"
    ]


def _unknown(root: Path) -> str:
    tables = [entry.name for entry in entries(root) if entry.name.lower().endswith(KINDS)]
    example = f"data.train={tables[0]}" if tables else "data.train=labels.csv"
    return (
        f"data.root: {printable(root)} holds {here(root)}: neither train/CLASS/* (val/ and test/ beside it), nor two "
        "class folders of pictures, nor *train*.tar. Name folders of class folders by data.train=, data.val= and "
        f"data.test=, or csv files of path and label: {example}"
    )


def _parts_in(folder: Path) -> list[str]:
    inside = {name.lower() for name in folders(folder)}
    return [part for part, words in WORDS.items() if inside & set(words)]


def _unlabelled(folder: Path) -> str | None:
    """Why a folder has no labels: pictures without class folders, or all of them in one folder; None if it has."""
    if not folder.is_dir() or (folder / ANNOTATIONS).is_file():
        return None
    inside = folders(folder)
    if not inside:
        return "it has no class folders, so that its pictures have no labels"
    if len(inside) == 1 and inside[0].lower() in ("images", "unknown", "unlabeled", "unlabelled", "all", "test"):
        return f"all of it lies in {inside[0]}/, which is no class"
    return None


def _shows(folder: Path, deep: int) -> bool:
    """Whether a folder holds a picture, or one of those below it does."""
    inside = entries(folder)
    if any(entry.name.lower().endswith(extensions()) and not hidden(entry.name) for entry in inside):
        return True
    return deep > 0 and any(_shows(folder / name, deep - 1) for name in folders(folder))


def _safe_is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
