"""Digests of files, cached between runs, and duplicate images in a data set."""

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

WHOLE = 2**29  # bytes of a part up to which all of them are hashed
SAMPLE = 50_000  # files of a larger part whose blocks are hashed
BLOCK = 4096
RACY = 2 * 10**9  # nanoseconds within which a file may change again without a new time of change
SLOW = 1.0  # seconds of work above which the results are cached


class DigestCache:
    """Results about files that are valid as long as size and times of change are the same.

    Stored in ``$XDG_CACHE_HOME/kd`` (otherwise ``~/.cache/kd``), one file for each data set; nothing is cached if that
    cannot be written.

    Args:
        root: the data set's folder.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        self.path = Path(home, "kd", "content", f"{name}.json")
        self._content: dict[str, str] | None = None

    def each(self, kind: str, files: Sequence[File], compute: Callable[[File], str]) -> list[str]:
        """The result of ``compute`` for each file, cached under ``kind``."""
        cache, started = self._read(), time.monotonic()
        keys = [_key(kind, file) for file in files]
        missing = [i for i, key in enumerate(keys) if key not in cache]
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            fresh = dict(zip(missing, pool.map(lambda i: compute(files[i]), missing)))
        values = [fresh[i] if i in fresh else cache[key] for i, key in enumerate(keys)]
        now = time.time_ns()
        cache |= {key: values[i] for i, key in enumerate(keys) if i in fresh and now - _changed(key) > RACY}
        if fresh and time.monotonic() - started > SLOW:
            self._write(cache)
        return values

    def _read(self) -> dict[str, str]:
        if self._content is None:
            try:
                content = json.loads(self.path.read_text())
                sound = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
                self._content = content if sound else {}
            except (OSError, ValueError):
                self._content = {}
        return self._content

    def _write(self, cache: Mapping[str, str]) -> None:
        with suppress(OSError, TrainingFailed):  # without a cache, the next run computes the digests again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(cache))


class Content:
    """The digests of a data set's files.

    Args:
        root: the data set's folder.
    """

    def __init__(self, root: str) -> None:
        self.root, self.cached_digests = root, DigestCache(root)

    def digests(self, files: Sequence[File]) -> list[str]:
        """A digest of each file: of all bytes if the files together have up to 512 MB, otherwise of three blocks.

        Of more than 50,000 files of a larger part, only so many, evenly spread, are hashed; the others have "".
        """
        if _total(files) <= WHOLE:
            return self.cached_digests.each("all", files, _whole)
        step = -(-len(files) // SAMPLE)
        sampled = self.cached_digests.each("blocks", files[::step], _blocks)
        return [sampled[i // step] if i % step == 0 else "" for i in range(len(files))]

    def fingerprint(self, files: Sequence[File]) -> str:
        """sha256 of the files' paths below the root, sizes, labels and digests, in order.

        Raises:
            InputError: a file that cannot be read.
        """
        total = hashlib.sha256()
        for file, digest in zip(files, self.digests(files)):
            inside = os.path.relpath(file.path, self.root)
            name = file.path if inside.startswith("..") else Path(inside).as_posix()
            size = _stat(file).st_size if file.length is None else f"{file.offset}+{file.length}"
            total.update(os.fsencode(name) + f"\t{size}\t{file.label}\t{digest}\n".encode())
        return total.hexdigest()

    def damaged(self, files: Sequence[File], reading: Reading) -> list[str]:
        """For each file its fault, or ""; all files are decoded once.

        Raises:
            InputError: an image with an ambiguous white level.
        """

        def fault(file: File) -> str:
            try:
                decode(file, reading)
            except Damaged as error:
                return str(error)
            return ""

        return self.cached_digests.each(f"damage {tuple(reading)}", files, fault)

    def duplicates(self, parts: Mapping[str, Sequence[File]]) -> list[str]:
        """Messages about images with the same bytes in two parts, or in two classes of a part.

        Parts that are not hashed completely are skipped.
        """
        whole = {part: files for part, files in parts.items() if files and _total(files) <= WHOLE}
        hashed = {part: list(zip(self.digests(files), files)) for part, files in whole.items()}
        lines = [line for part, pairs in hashed.items() for line in _two_labels(part, pairs)]
        names = list(hashed)
        for i, part in enumerate(names):
            for other in names[i + 1 :]:
                digests = {digest for digest, _ in hashed[part]}
                same = [file for digest, file in hashed[other] if digest in digests]
                if same:
                    share = f"{len(same):,} of {len(hashed[other]):,}"
                    lines.append(f"images of {other} that are also in {part}: {share}, first {same[0]}")
        return lines


def _two_labels(part: str, pairs: Iterable[tuple[str, File]]) -> list[str]:
    labels: dict[str, int] = {}
    conflicts = [
        file for digest, file in pairs if file.label >= 0 and labels.setdefault(digest, file.label) != file.label
    ]
    return [f"images of {part} under two classes ({len(conflicts):,}), first {conflicts[0]}"] if conflicts else []


def _whole(file: File) -> str:
    return _read(file, lambda: hashlib.blake2b(contents(file), digest_size=16).hexdigest())


def _blocks(file: File) -> str:
    """A digest of the first, the middle and the last block."""

    def compute() -> str:
        size = os.path.getsize(file.path) if file.length is None else file.length
        digest = hashlib.blake2b(digest_size=16)
        for start in sorted({0, max(0, (size - BLOCK) // 2), max(0, size - BLOCK)}):
            block = file._replace(offset=file.offset + start, length=min(BLOCK, size))
            digest.update(contents(block))
        return digest.hexdigest()

    return _read(file, compute)


def _read(file: File, compute: Callable[[], str]) -> str:
    try:
        return compute()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _stat(file: File) -> Any:
    try:
        return os.stat(file.path)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _total(files: Sequence[File]) -> int:
    return sum(_stat(file).st_size if file.length is None else file.length for file in files)


def _key(kind: str, file: File) -> str:
    """Everything that shows a change of a file, its time of change last."""
    try:
        status = os.stat(file.path)
        state = f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_ctime_ns}"
    except OSError:  # a dangling link, which is not cached
        state = f"0 0 0 {time.time_ns()}"
    name = os.fsencode(file.path).decode("utf-8", "backslashreplace")
    return f"{kind} {name} {file.offset} {file.length} {state}"


def _changed(key: str) -> int:
    return int(key.rpartition(" ")[2])
