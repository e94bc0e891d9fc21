"""The end of a command: one line and an exit code for any error, and a file with the traceback of a bug."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kd.process.classify import classify
from kd.process.job import Job
from kd.process.ranks import rank

TRACEBACK = "traceback.txt"


class Exit(SystemExit):
    """Ends the process with an exit code after its message was printed; the codes are in docs/exit-codes.md."""


@dataclass(frozen=True)
class Failure:
    """Why one of several jobs failed: the exit code, and the message, None if another process printed it."""

    code: int
    line: str | None

    def of(self, name: str) -> Failure:
        """The same failure with the name of the job before the message."""
        return replace(self, line=self.line and f"{name}: {self.line}")


@contextmanager
def exit_on_error(job: Job | None = None) -> Iterator[None]:
    """Turns any exception that ends a command into one line ``error: ...`` and an exit code.

    Only one of a job's processes prints. ``HYDRA_FULL_ERROR=1`` prints tracebacks as well.
    """
    before = {name: os.environ.get(name) for name in ("KD_FULL_ERROR", "HYDRA_FULL_ERROR")}
    full = (before["KD_FULL_ERROR"] or before["HYDRA_FULL_ERROR"]) == "1"
    os.environ["KD_FULL_ERROR"] = str(int(full))  # for the processes that this one starts
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra always raises, so that kd decides what is printed
    try:
        yield
    except Exit:
        raise
    except BaseException as error:
        code, line = classify(error)
        if isinstance(error, SystemExit) and line is None:
            raise
        if full:
            traceback.print_exception(error)
        prints = rank() == 0
        if job is not None:
            prints, code, cause = job.ended(code, error)
            line = line if cause is error else str(cause)
        if prints:
            print_error(line or write_traceback(error, job.folder if job is not None else None))
        raise Exit(code) from None
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def print_error(line: str) -> None:
    """Prints one line on stderr."""
    print(f"error: {line}", file=sys.stderr, flush=True)


def write_traceback(error: BaseException, folder: Path | None) -> str:
    """Writes the traceback of an unexpected exception into ``folder``, or a temporary file; returns the message."""
    text = "".join(traceback.format_exception(error))
    try:
        if folder is None:
            handle, name = tempfile.mkstemp(prefix="kd-traceback-", suffix=".txt")
            os.close(handle)
        path = Path(name) if folder is None else folder / TRACEBACK
        path.write_text(text)
    except OSError as fault:
        return f"{first_line(error)}; its traceback cannot be written ({fault.strerror}), HYDRA_FULL_ERROR=1 shows it"
    return f"{first_line(error)}; the whole traceback is in {path}"


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    message = str(error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0]}" if message else type(error).__name__
