"""The run folder: its file names, its lock, and the versions that wrote it."""

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

FORMAT = 1  # of summary.json
STUDENT = "student.safetensors"
PREDICTIONS = "predictions.safetensors"
HISTORY = "history.csv"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"


@contextmanager
def locked(folder: Path, new: bool = False, wait: bool = False) -> Iterator[None]:
    """Locks a run folder, which is created if absent, against other processes while this one writes into it.

    Args:
        folder: the run folder.
        new: whether it must not contain a run yet.
        wait: whether to wait until another process releases it.

    Raises:
        InputError: another process has locked it, it contains a run, or it cannot be written.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        while wait and started_outside() and not _entered(folder):
            time.sleep(0.2)
        yield  # the first process holds the lock for the others
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
            path, resume = relative(folder), quote(override("resume", relative(folder)))
            raise InputError(f"{path} already contains a run: resume it with {resume}, or set another hydra.run.dir")
        yield


def _seize(lock: TextIO, folder: Path, wait: bool) -> None:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        if not wait:
            path = relative(folder)
            raise InputError(f"another process is training in {path}; wait for it, or stop it first") from error
        log.info("another process is training in %s; waiting for it", folder)
        fcntl.lockf(lock, fcntl.LOCK_EX)
    except OSError:
        log.warning("%s is on a file system without locks: make sure that no two processes train in it", folder)


def _entered(folder: Path) -> bool:
    """Whether this launch's first process has locked a folder, or need not as its run is finished."""
    lock = folder / ".lock"
    return (folder / SUMMARY).is_file() or (lock.is_file() and lock.read_text() == launch())


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    installed = {"python": platform.python_version()}
    for package in ("kd-lightning", "torch", "torchvision", "pytorch-lightning", "hydra-core"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "checkout"
    return installed
