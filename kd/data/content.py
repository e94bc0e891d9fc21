"""What is in files: a digest of each, remembered from one start to the next, and what lies twice in a data set."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from kd.data.decode import Damaged, File, Reading, contents, decode
from kd.errors import InputError, TrainingFailed
from kd.files import write_text

WHOLE = 2**29  # bytes of a part up to which every one of them counts
SAMPLE = 50_000  # files of a larger part whose blocks count
BLOCK = 4096
RACY = 2 * 10**9  # nanoseconds within which a file may change again without another time of change
SLOW = 1.0  # seconds of work from which on it is remembered


class Remembered:
    """What is known of files from an earlier start, as long as size and times of change are the same.

    It lies in ``$XDG_CACHE_HOME/kd`` (else ``~/.cache/kd``), a file for each data set; where that cannot be written,
    nothing is remembered.

    Args:
        root: the data set's folder.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        self.path = Path(home, "kd", "content", f"{name}.json")
        self._known: dict[str, str] | None = None

    def each(self, what: str, files: Sequence[File], find: Callable[[File], str]) -> list[str]:
        """What ``find`` says of each file, now or at an earlier start; ``what`` names it."""
        known, begun = self._read(), time.monotonic()
        keys = [_key(what, file) for file in files]
        missing = [at for at, key in enumerate(keys) if key not in known]
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            fresh = dict(zip(missing, pool.map(lambda at: find(files[at]), missing)))
        found = [fresh[at] if at in fresh else known[key] for at, key in enumerate(keys)]
        now = time.time_ns()
        known |= {key: found[at] for at, key in enumerate(keys) if at in fresh and now - _changed(key) > RACY}
        if fresh and time.monotonic() - begun > SLOW:
            self._write(known)
        return found

    def _read(self) -> dict[str, str]:
        if self._known is None:
            try:
                content = json.loads(self.path.read_text())
                sound = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
                self._known = content if sound else {}
            except (OSError, ValueError):
                self._known = {}
        return self._known

    def _write(self, known: Mapping[str, str]) -> None:
        with suppress(OSError, TrainingFailed):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(known))


class Content:
    """The digests of a data set's files.

    Args:
        root: its folder.
    """

    def __init__(self, root: str) -> None:
        self.root, self.remembered = root, Remembered(root)

    def digests(self, files: Sequence[File]) -> list[str]:
        """A digest of each file: of all its bytes where the files together have up to 512 MB, else of three blocks.

        Of more than 50,000 files of a larger part only so many, evenly spread, have one; the others have "".
        """
        if _total(files) <= WHOLE:
            return self.remembered.each("all", files, _whole)
        step = -(-len(files) // SAMPLE)
        some = self.remembered.each("blocks", files[::step], _blocks)
        return [some[at // step] if at % step == 0 else "" for at in range(len(files))]

    def fingerprint(self, files: Sequence[File]) -> str:
        """sha256 of the files' paths below the root, sizes, labels and digests, in their order.

        Raises:
            InputError: a file that cannot be read; it is named.
        """
        total = hashlib.sha256()
        for file, digest in zip(files, self.digests(files)):
            inside = os.path.relpath(file.path, self.root)
            name = file.path if inside.startswith("..") else Path(inside).as_posix()
            size = _stat(file).st_size if file.length is None else f"{file.offset}+{file.length}"
            total.update(os.fsencode(name) + f"\t{size}\t{file.label}\t{digest}\n".encode())
        return total.hexdigest()

    def damaged(self, files: Sequence[File], reading: Reading) -> list[str]:
        """For each file what is wrong with it, or ""; all of them are decoded, once.

        Raises:
            InputError: a picture whose values are not clear.
        """

        def wrong(file: File) -> str:
            try:
                decode(file, reading)
            except Damaged as error:
                return str(error)
            return ""

        return self.remembered.each(f"damage {tuple(reading)}", files, wrong)

    def twice(self, parts: Mapping[str, Sequence[File]]) -> list[str]:
        """What to say of pictures with the same bytes in two parts, or in two classes of a part.

        Nothing is said of parts of which not every byte is looked at.
        """
        whole = {part: files for part, files in parts.items() if files and _total(files) <= WHOLE}
        found = {part: list(zip(self.digests(files), files)) for part, files in whole.items()}
        lines = [line for part, pairs in found.items() for line in _two_labels(part, pairs)]
        names = list(found)
        for at, part in enumerate(names):
            for other in names[at + 1 :]:
                known = {digest for digest, _ in found[part]}
                same = [file for digest, file in found[other] if digest in known]
                if same:
                    share = f"{len(same):,} of {len(found[other]):,}"
                    lines.append(f"pictures of {other} that are in {part} too: {share}, first {same[0]}")
        return lines


def _two_labels(part: str, pairs: Iterable[tuple[str, File]]) -> list[str]:
    labels: dict[str, int] = {}
    odd = [file for digest, file in pairs if file.label >= 0 and labels.setdefault(digest, file.label) != file.label]
    return [f"pictures of {part} under two classes ({len(odd):,}), first {odd[0]}"] if odd else []


def _whole(file: File) -> str:
    return _read(file, lambda: hashlib.blake2b(contents(file), digest_size=16).hexdigest())


def _blocks(file: File) -> str:
    """Of the first, the middle and the last block."""

    def find() -> str:
        size = os.path.getsize(file.path) if file.length is None else file.length
        digest = hashlib.blake2b(digest_size=16)
        for start in sorted({0, max(0, (size - BLOCK) // 2), max(0, size - BLOCK)}):
            some = file._replace(offset=file.offset + start, length=min(BLOCK, size))
            digest.update(contents(some))
        return digest.hexdigest()

    return _read(file, find)


def _read(file: File, find: Callable[[], str]) -> str:
    try:
        return find()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _stat(file: File) -> Any:
    try:
        return os.stat(file.path)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _total(files: Sequence[File]) -> int:
    return sum(_stat(file).st_size if file.length is None else file.length for file in files)


def _key(what: str, file: File) -> str:
    """All by which a change of a file shows, its time of change last."""
    try:
        it = os.stat(file.path)
        state = f"{it.st_size} {it.st_mtime_ns} {it.st_ino} {it.st_ctime_ns}"
    except OSError:  # a link to nowhere, of which nothing is remembered
        state = f"0 0 0 {time.time_ns()}"
    name = os.fsencode(file.path).decode("utf-8", "backslashreplace")
    return f"{what} {name} {file.offset} {file.length} {state}"


def _changed(key: str) -> int:
    return int(key.rpartition(" ")[2])
