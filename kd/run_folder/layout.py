"""The run folder: names of its files, the lock, the versions of what wrote it."""

from __future__ import annotations

import fcntl
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import TextIO

from pytorch_lightning.utilities import rank_zero_only

from kd.errors import InputError
from kd.files import relative
from kd.process.command import override
from kd.process.ranks import launch, started_outside

log = logging.getLogger(__name__)


FORMAT = 1


STUDENT = "student.safetensors"


PREDICTIONS = "predictions.safetensors"


HISTORY = "history.csv"


SUMMARY = "summary.json"


CONFIG = "config.yaml"


CHECKPOINTS = "checkpoints"


@contextmanager
def locked(folder: Path, new: bool = False, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a run folder, which is made if absent, while this one writes into it.

    Args:
        folder: the run folder.
        new: whether it must not hold a run yet.
        wait: whether to wait for a process that is in it.

    Raises:
        InputError: another process is in it, it holds a run, or it cannot be written.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        while wait and started_outside() and not _entered(folder):
            time.sleep(0.2)
        yield  # the first process speaks for the others
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise InputError(f"the run folder {folder} cannot be written: {error.strerror}") from error
    with lock:
        _seize(lock, folder, wait)
        lock.truncate(0)
        lock.write(launch())
        lock.flush()
        if new and ((folder / SUMMARY).exists() or any((folder / CHECKPOINTS).glob("*.ckpt"))):
            here, word = relative(folder), quote(override("resume", relative(folder)))
            raise InputError(f"{here} holds a run already: go on with it by {word}, or give another hydra.run.dir")
        yield


def _seize(lock: TextIO, folder: Path, wait: bool) -> None:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        if not wait:
            here = relative(folder)
            raise InputError(f"another process is training in {here}; wait for it, or stop it first") from error
        log.info("another process is training in %s; waiting for it", folder)
        fcntl.lockf(lock, fcntl.LOCK_EX)
    except OSError:
        log.warning("%s is on a file system without locks: see to it that no two processes train in it", folder)


def _entered(folder: Path) -> bool:
    """Whether this launch's first process is in a folder, or need not be as a run is finished there."""
    lock = folder / ".lock"
    return (folder / SUMMARY).is_file() or (lock.is_file() and lock.read_text() == launch())


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    found = {"python": platform.python_version()}
    for package in ("kd-lightning", "torch", "torchvision", "pytorch-lightning", "hydra-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "checkout"
    return found
