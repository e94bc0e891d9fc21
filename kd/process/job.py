"""The processes of a job: exactly one of them reports why the job ended, and all of them end."""

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

import torch.distributed

from kd.errors import TrainingFailed
from kd.process._lightning import replace_process_observer
from kd.process.ranks import LAUNCH, SWEPT, is_child, launch, rank, started_outside

PATIENCE = 8.0  # seconds to wait for another process to report its error, or to end
SET_BY_LIGHTNING = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCH, SWEPT)
LOST = r"gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe|timed out waiting|socket timeout"


class Job:
    """A job in its folder; as a context manager it watches the processes that Lightning starts, and ends them.

    Args:
        folder: the run folder, shared by all processes.
        swept: whether the job belongs to a sweep; its other processes must run this job and not the sweep.
    """

    def __init__(self, folder: Path, swept: bool = False) -> None:
        self.folder, self.swept = folder, swept
        self.children: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> Job:
        self._before = {name: os.environ.get(name) for name in SET_BY_LIGHTNING}
        if is_child():
            threading.Thread(target=self._watch_parent, daemon=True).start()
        elif started_outside():
            if rank() == 0:
                self._forget(but=self._mark)
        else:
            os.environ[LAUNCH] = f"{os.getpid()}-{time.time_ns()}"
            if self.swept:
                os.environ[SWEPT] = str(self.folder)
            # Lightning's own observer kills this process as well, before it can report anything
            self._observer = replace_process_observer(self.watch)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._over.set()
        if kind is None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else the next job of a sweep would use this one's
        if is_child() or started_outside():
            return
        replace_process_observer(self._observer)
        _end(self.children, PATIENCE if kind is None else PATIENCE / 2)
        self._forget()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    @property
    def shared(self) -> bool:
        """Whether this job has other processes."""
        return bool(self.children) or is_child() or started_outside()

    def watch(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """Watches the processes that Lightning started, so that none of them waits for one that has ended."""
        self.children = list(children)
        threading.Thread(target=self._watch_children, daemon=True).start()

    def ended(self, code: int, error: BaseException) -> tuple[bool, int, BaseException]:
        """Whether this process reports why the job ends, the exit code of all its processes, and the error.

        A process that only detected the loss of another one first waits for that one to report.
        """
        if not self.shared:
            return True, code, error
        if _is_loss(error):
            other = self._wait()
            if other is not None:
                return False, other, error
            error, code = TrainingFailed(self._lost(error)), 3
        first, code = self._claim(code)
        return first, code, error

    @property
    def _mark(self) -> Path:
        """The file that the first process to report why the job ends creates; each launch has its own."""
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
            return False, self._reported() or code
        except OSError:
            pass  # the folder cannot be written: better reported twice than not at all
        return True, code

    def _reported(self) -> int | None:
        """The job's exit code as reported by another process; None if none has."""
        try:
            return int(self._mark.read_text() or 1)
        except (OSError, ValueError):
            return None

    def _wait(self) -> int | None:
        until = time.monotonic() + PATIENCE
        while (code := self._reported()) is None and time.monotonic() < until:
            time.sleep(0.1)
            if any(child.poll() for child in self.children):
                until = min(until, time.monotonic() + 1)  # it has ended, and reported what it could
        return code

    def _lost(self, error: BaseException | None = None) -> str:
        """Which process ended without a report; ``error`` is how another one detected it."""
        for number, child in enumerate(self.children, 1):
            if code := child.poll():
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                who = f"rank {number} of {len(self.children) + 1} processes"
                return f"{who} was lost ({how}); the last checkpoint is kept"
        symptom = f" ({str(error).strip().splitlines()[0]})" if str(error or "").strip() else ""
        return f"another process of this job was lost, or did not respond in time{symptom}; the last checkpoint is kept"

    def _watch_children(self) -> None:
        while not self._over.wait(0.5):
            codes = [child.poll() for child in self.children]
            if not any(codes):
                if None not in codes:
                    return
            elif not self._over.wait(2 * PATIENCE):  # the main thread is waiting for a process that has ended
                self._give_up()

    def _watch_parent(self) -> None:
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
    """Whether an exception only means that another process did not respond."""
    cause: BaseException | None = error
    while cause is not None:
        lost = type(cause) is RuntimeError and re.search(LOST, str(cause).lower())
        if lost or isinstance(cause, torch.distributed.DistError):
            return True
        cause = cause.__cause__
    return False


def _end(children: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    """Waits for processes to end, then terminates and finally kills those that do not."""
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
