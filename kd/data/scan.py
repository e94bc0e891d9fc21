"""Class folders and their contents: which files are images of a class, which are skipped, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from kd.data.decode import printable
from kd.errors import InputError

HIDDEN = "hidden files and folders"
SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
ABOVE = "links to a parent folder"


class Skipped:
    """Counts the skipped files and folders of a data set by reason, with the first example of each.

    Args:
        root: paths are printed relative to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def count(self, why: str, path: str, number: int = 1) -> None:
        """Counts files or folders, of which ``path`` is the first example."""
        if number:
            self.counts[why] = self.counts.get(why, 0) + number
            self._first.setdefault(why, path)

    def messages(self) -> list[str]:
        """One line for each reason, the most frequent first."""
        ordered = sorted(self.counts.items(), key=lambda pair: -pair[1])
        return [f"skipped: {why} ({count:,}), first {self._relative(self._first[why])}" for why, count in ordered]

    def _relative(self, path: str) -> str:
        return printable(os.path.relpath(path, self.root))


class Claims:
    """The folders of parts and classes, into which links are not followed.

    Other links are followed, as data sets often consist of links.
    """

    def __init__(self) -> None:
        self.owner: dict[str, tuple[str, str]] = {}  # real path of a folder: its part and its class, "" for all classes

    def describe_owner(self, parent: str) -> str:
        """The class or part that a folder belongs to."""
        part, name = self.owner[parent]
        return f"class {printable(name)} of {part}" if name else f"part {part}"

    def why_not_followed(self, real: str, ancestors: tuple[str, ...]) -> str | None:
        """Why a link from below ``ancestors`` to the folder ``real`` is not followed; None if it is."""
        if any(_within(ancestor, real) for ancestor in ancestors):
            return ABOVE
        for parent in _upwards(real):
            if parent in self.owner:
                return f"links into the {self.describe_owner(parent)}"
        return ABOVE if any(_within(claimed, real) for claimed in self.owner) else None


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is not data: ``.ipynb_checkpoints``, ``._x.jpg``, ``__MACOSX``."""
    return name.startswith(".") or name.lower() in SYSTEM


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The contents of a folder, sorted by name.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with os.scandir(folder) as content:
            return sorted(content, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{printable(folder)} cannot be read: {error.strerror}") from error


def folders(part: Path) -> list[str]:
    """The names of the folders in a folder that are not hidden."""
    return [entry.name for entry in entries(part) if not hidden(entry.name) and _is_folder(entry)]


def class_folders(part: Path, names: list[str], skipped: Skipped) -> dict[str, str]:
    """The classes of a part, in torchvision's order, with the real path of each one's folder.

    A link to a parent folder or to another class is not a class: it would relabel the images there.
    """
    top = os.path.realpath(part)
    links = [name for name in names if (part / name).is_symlink()]
    classes = {name: os.path.join(top, name) for name in names if name not in links}
    class_of = {real: name for name, real in classes.items()}
    linked: dict[str, str] = {}
    for name in links:
        real = os.path.realpath(part / name)
        inside = (class_of[parent] for parent in _upwards(real) if parent in class_of)
        other = linked.get(real) or next(inside, None)
        if _within(top, real):
            skipped.count(ABOVE, str(part / name))
        elif other is not None:
            skipped.count(f"links to the class {printable(other)}", str(part / name))
        else:
            classes[name], linked[real] = real, name
    return dict(sorted(classes.items()))


def image_paths(folder: Path, real: str, part: str, claims: Claims, skipped: Skipped) -> list[str]:
    """The paths of the images below a class folder of a part, in torchvision's order.

    Links are followed as :class:`Claims` allows. Pipes and devices, hidden files and folders, and files whose extension
    is not one of torchvision's are skipped. A dangling link is included, as a damaged image.
    """
    paths: list[tuple[str, str]] = []
    pending: list[tuple[str, str, tuple[str, ...]]] = [(str(folder), real, (real, os.path.realpath(folder.parent)))]
    while pending:
        path, real, ancestors = pending.pop()
        for entry in entries(path):
            why = HIDDEN if hidden(entry.name) else None
            if why is None and _is_folder(entry):
                is_link = entry.is_symlink()
                below = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
                if is_link:
                    why = claims.why_not_followed(below, ancestors)
                elif below in claims.owner:
                    why = f"folders of the {claims.describe_owner(below)}"
                if why is None:
                    pending.append((entry.path, below, (*ancestors, below)))
            elif why is None and (why := _unfit(entry, real, part, claims)) is None:
                paths.append((path, entry.name))
            if why is not None:
                skipped.count(why, entry.path)
    return [os.path.join(*pair) for pair in sorted(paths)]


def _unfit(entry: os.DirEntry[str], real: str, part: str, claims: Claims) -> str | None:
    """Why a file is not an image of its class; None if it is."""
    extension = os.path.splitext(entry.name)[1].lower()
    if not entry.is_file() and os.path.exists(entry.path):
        return "pipes, sockets and devices"
    if extension not in extensions():
        return f"{printable(extension)} files" if extension else "files without an extension"
    if entry.is_symlink() and entry.is_file():
        for parent in _upwards(_home(real, os.readlink(entry.path))):
            if parent in claims.owner and claims.owner[parent][0] == part and claims.owner[parent][1]:
                return f"links to images of the {claims.describe_owner(parent)}"
    return None


def claimed(parts: Mapping[str, tuple[Path, Mapping[str, str]]]) -> Claims:
    """The folders of each part and of its classes, which are those of :func:`class_folders`."""
    claims = Claims()
    for part, (folder, _) in parts.items():
        claims.owner[os.path.realpath(folder)] = (part, "")
    for part, (_, classes) in parts.items():
        claims.owner |= {real: (part, name) for name, real in classes.items()}
    return claims


@lru_cache(1)
def extensions() -> tuple[str, ...]:
    """The image file extensions of torchvision."""
    from torchvision.datasets.folder import IMG_EXTENSIONS  # takes a second to import

    return tuple(IMG_EXTENSIONS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _home(folder: str, target: str) -> str:
    """The real folder of a link's target; the link is in ``folder``."""
    path = os.path.join(folder, target)
    return os.path.dirname(os.path.realpath(path)) if os.path.islink(path) else _real(os.path.dirname(path))


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _upwards(path: str) -> Iterator[str]:
    while True:
        yield path
        if path == (path := os.path.dirname(path)):
            return
