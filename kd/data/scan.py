"""Class folders and what lies below them: which files are pictures of a class, and what is left out, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from kd.data.decode import printable
from kd.errors import InputError

HIDDEN = "hidden files and folders"
SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
ABOVE = "links to a folder above"


class LeftOut:
    """What is not used of a data set: how often for each reason, and the first example.

    Args:
        root: paths are shown from here.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def count(self, why: str, path: str, many: int = 1) -> None:
        """Counts files or folders, of which ``path`` is the first."""
        if many:
            self.counts[why] = self.counts.get(why, 0) + many
            self._first.setdefault(why, path)

    def lines(self) -> list[str]:
        """One line for each reason, the commonest first."""
        ordered = sorted(self.counts.items(), key=lambda pair: -pair[1])
        return [f"left out: {why} ({count:,}), first {self._shown(self._first[why])}" for why, count in ordered]

    def _shown(self, path: str) -> str:
        return printable(os.path.relpath(path, self.root))


class Claims:
    """The folders that parts and classes take their pictures from, so that links do not lead into them.

    A link to any other place is followed, as data sets are often made of links.
    """

    def __init__(self) -> None:
        self.owner: dict[str, tuple[str, str]] = {}  # real path of a folder: its part and its class, "" for all of them

    def said(self, place: str) -> str:
        """Whose a claimed folder is."""
        part, name = self.owner[place]
        return f"class {printable(name)} of {part}" if name else f"part {part}"

    def trespass(self, real: str, above: tuple[str, ...]) -> str | None:
        """Why a link from within ``above`` to the folder ``real`` is not followed; None if it is."""
        if any(_within(up, real) for up in above):
            return ABOVE
        for place in _upwards(real):
            if place in self.owner:
                return f"links into the {self.said(place)}"
        return ABOVE if any(_within(claimed, real) for claimed in self.owner) else None


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: ``.ipynb_checkpoints``, ``._x.jpg``, ``__MACOSX``."""
    return name.startswith(".") or name.lower() in SYSTEM


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{printable(folder)} cannot be read: {error.strerror}") from error


def folders(part: Path) -> list[str]:
    """The names of the folders in a folder that are not hidden."""
    return [entry.name for entry in entries(part) if not hidden(entry.name) and _is_folder(entry)]


def class_folders(part: Path, names: list[str], left: LeftOut) -> dict[str, str]:
    """The classes of a part, in torchvision's order, with the real path of each one's folder.

    A link to a folder above or to another class is no class: it would relabel that one's pictures.
    """
    top = os.path.realpath(part)
    links = [name for name in names if (part / name).is_symlink()]
    found = {name: os.path.join(top, name) for name in names if name not in links}
    own = {real: name for name, real in found.items()}
    linked: dict[str, str] = {}
    for name in links:
        real = os.path.realpath(part / name)
        other = linked.get(real) or next((own[place] for place in _upwards(real) if place in own), None)
        if _within(top, real):
            left.count(ABOVE, str(part / name))
        elif other is not None:
            left.count(f"links to the class {printable(other)}", str(part / name))
        else:
            found[name], linked[real] = real, name
    return dict(sorted(found.items()))


def pictures(folder: Path, real: str, part: str, claims: Claims, left: LeftOut) -> list[str]:
    """The paths of the pictures below a class folder of a part, in torchvision's order.

    Links are followed as :class:`Claims` says. Pipes and devices, hidden files and folders, and files whose extension
    is not one of torchvision's are left out. A link to nowhere stays: it is a damaged picture.
    """
    found: list[tuple[str, str]] = []
    pending: list[tuple[str, str, tuple[str, ...]]] = [(str(folder), real, (real, os.path.realpath(folder.parent)))]
    while pending:
        path, real, above = pending.pop()
        for entry in entries(path):
            why = HIDDEN if hidden(entry.name) else None
            if why is None and _is_folder(entry):
                link = entry.is_symlink()
                below = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                if link:
                    why = claims.trespass(below, above)
                elif below in claims.owner:
                    why = f"folders of the {claims.said(below)}"
                if why is None:
                    pending.append((entry.path, below, (*above, below)))
            elif why is None and (why := _unfit(entry, real, part, claims)) is None:
                found.append((path, entry.name))
            if why is not None:
                left.count(why, entry.path)
    return [os.path.join(*pair) for pair in sorted(found)]


def _unfit(entry: os.DirEntry[str], real: str, part: str, claims: Claims) -> str | None:
    """Why a file is no picture of its class; None if it is."""
    kind = os.path.splitext(entry.name)[1].lower()
    if not entry.is_file() and os.path.exists(entry.path):
        return "pipes, sockets and devices"
    if kind not in extensions():
        return f"{printable(kind)} files" if kind else "files without an extension"
    if entry.is_symlink() and entry.is_file():
        for place in _upwards(_home(real, os.readlink(entry.path))):
            if place in claims.owner and claims.owner[place][0] == part and claims.owner[place][1]:
                return f"links to pictures of the {claims.said(place)}"
    return None


def claimed(parts: Mapping[str, tuple[Path, Mapping[str, str]]]) -> Claims:
    """The claims of folders: for each part its own and those of its classes, as :func:`class_folders` gives them."""
    claims = Claims()
    for part, (folder, _) in parts.items():
        claims.owner[os.path.realpath(folder)] = (part, "")
    for part, (_, classes) in parts.items():
        claims.owner |= {real: (part, name) for name, real in classes.items()}
    return claims


@lru_cache(1)
def extensions() -> tuple[str, ...]:
    """The extensions of pictures, torchvision's."""
    from torchvision.datasets.folder import IMG_EXTENSIONS  # takes a second to import

    return tuple(IMG_EXTENSIONS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _home(folder: str, target: str) -> str:
    """The real folder of a link's target; the link lies in ``folder``."""
    aim = os.path.join(folder, target)
    return os.path.dirname(os.path.realpath(aim)) if os.path.islink(aim) else _real(os.path.dirname(aim))


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _within(path: str, above: str) -> bool:
    return path == above or path.startswith(above.rstrip(os.sep) + os.sep)


def _upwards(path: str) -> Iterator[str]:
    while True:
        yield path
        if path == (path := os.path.dirname(path)):
            return
