"""The processes of one job: one of them says why it ended, and all of them end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed

from kd.errors import TrainingFailed
from kd.process.ranks import LAUNCH, SWEPT, is_child, launch, rank, started_outside

PATIENCE = 8.0  # seconds that a process waits for another one to say why it ended, or to end


SET_BY_LIGHTNING = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCH, SWEPT)


LOST = r"gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe|timed out waiting|socket timeout"


def _launchers() -> Any:
    from pytorch_lightning.strategies.launchers import subprocess_script  # Lightning takes seconds to import

    return subprocess_script


class Job:
    """One job in its folder: ``with`` it, Lightning's other processes are watched, and are gone at its end.

    Args:
        folder: the run folder, which all of the processes share.
        swept: whether the job is one of a sweep, whose other processes must run this job and not the sweep.
    """

    def __init__(self, folder: Path, swept: bool = False) -> None:
        self.folder, self.swept = folder, swept
        self.children: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> Job:
        self._before = {name: os.environ.get(name) for name in SET_BY_LIGHTNING}
        if is_child():
            threading.Thread(target=self._mind_parent, daemon=True).start()
        elif started_outside():
            if rank() == 0:
                self._forget(but=self._mark)
        else:
            os.environ[LAUNCH] = f"{os.getpid()}-{time.time_ns()}"
            if self.swept:
                os.environ[SWEPT] = str(self.folder)
            # Lightning's own observer kills this process, too, before it can say anything
            self._observer = _launchers()._launch_process_observer
            _launchers()._launch_process_observer = self.watch
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._over.set()
        if kind is None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else the next job of a sweep finds this one's
        if is_child() or started_outside():
            return
        _launchers()._launch_process_observer = self._observer
        _end(self.children, PATIENCE if kind is None else PATIENCE / 2)
        self._forget()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    @property
    def shared(self) -> bool:
        """Whether there are other processes in this job."""
        return bool(self.children) or is_child() or started_outside()

    def watch(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """Looks after the processes that Lightning has started: none of them waits for one that is gone."""
        self.children = list(children)
        threading.Thread(target=self._mind_children, daemon=True).start()

    def ended(self, code: int, error: BaseException) -> tuple[bool, int, BaseException]:
        """Whether this process is the one to say why the job ends, the exit code of all of them, and the error.

        A process that only noticed the loss of another one gives that one time to say why it went.
        """
        if not self.shared:
            return True, code, error
        if _is_loss(error):
            said = self._wait()
            if said is not None:
                return False, said, error
            error, code = TrainingFailed(self._lost(error)), 3
        first, code = self._claim(code)
        return first, code, error

    @property
    def _mark(self) -> Path:
        """The file that the first process to say why the job ends makes, and that no other launch knows."""
        return self.folder / f".ended-{launch()}"

    def _forget(self, but: Path | None = None) -> None:
        for mark in self.folder.glob(".ended-*"):
            if mark != but:
                mark.unlink(missing_ok=True)

    def _claim(self, code: int) -> tuple[bool, int]:
        try:
            with self._mark.open("x") as file:
                file.write(str(code))
        except FileExistsError:
            return False, self._said() or code
        except OSError:
            pass  # no folder that could be written: better said twice than not at all
        return True, code

    def _said(self) -> int | None:
        """The exit code that another process has given as that of the job."""
        try:
            return int(self._mark.read_text() or 1)
        except (OSError, ValueError):
            return None

    def _wait(self) -> int | None:
        until = time.monotonic() + PATIENCE
        while (said := self._said()) is None and time.monotonic() < until:
            time.sleep(0.1)
            if any(child.poll() for child in self.children):
                until = min(until, time.monotonic() + 1)  # it is gone, and has said what it had to say
        return said

    def _lost(self, error: BaseException | None = None) -> str:
        """Which process went without a word; ``error`` is how another one noticed."""
        for number, child in enumerate(self.children, 1):
            if code := child.poll():
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                who = f"rank {number} of {len(self.children) + 1} processes"
                return f"{who} was lost ({how}); the last checkpoint is kept"
        told = f" ({str(error).strip().splitlines()[0]})" if str(error or "").strip() else ""
        return f"another process of this job was lost, or did not answer in time{told}; the last checkpoint is kept"

    def _mind_children(self) -> None:
        while not self._over.wait(0.5):
            codes = [child.poll() for child in self.children]
            if not any(codes):
                if None not in codes:
                    return
            elif not self._over.wait(2 * PATIENCE):  # the main thread waits for a process that is gone
                self._give_up()

    def _mind_parent(self) -> None:
        parent = int(os.environ[LAUNCH].partition("-")[0])
        while not self._over.wait(1):
            if os.getppid() != parent and not self._over.wait(2 * PATIENCE):
                self._give_up()

    def _give_up(self) -> None:
        line = self._lost()
        first, code = self._claim(3)
        if first:
            print(f"error: {line}", file=sys.stderr, flush=True)
        for child in self.children:
            child.kill()
        self._forget()
        os._exit(code)


def _is_loss(error: BaseException) -> bool:
    """Whether an exception only says that another process did not answer."""
    found: BaseException | None = error
    while found is not None:
        plain = type(found) is RuntimeError and re.search(LOST, str(found).lower())
        if plain or isinstance(found, torch.distributed.DistError):
            return True
        found = found.__cause__
    return False


def _end(children: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    """Waits for processes that are about to end, and ends those that do not."""
    until = time.monotonic() + patience
    for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
        for child in children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                end(child)
        until = time.monotonic() + patience
    for child in children:
        child.wait()
