"""What ends a run, by its exit code: bad input, a training that failed, a signal; and how a near miss is named."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Something a user gave is wrong: shown as one line ``error: ...``, exit code 2."""


class TrainingFailed(RuntimeError):
    """Training cannot go on, through no fault of the input: one line ``error: ...``, exit code 3."""


class Stopped(Exception):
    """A signal ended the run after its state was saved: one line, exit code 128 + ``signum``."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def disk_fault(error: BaseException | None) -> OSError | None:
    """The disk's own complaint, which libraries hide behind one of theirs; None if there is none."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def located(at: str) -> Iterator[None]:
    """Puts the place in the configuration before whatever a constructor complains of."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise with_key(at, error) from error


def with_key(at: str, error: BaseException) -> InputError:
    """The first line of ``error`` after its place, unless it names the place itself."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(line if line.startswith(at) else f"{at}: {line}")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, or None where nothing is alike."""
    lowered = {choice.lower(): choice for choice in choices}
    match = get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    return lowered[match[0]] if match else None


def unknown(what: str, name: str, choices: Iterable[str], shown: int = 20) -> InputError:
    """The error for a name that is not among ``choices``: says the nearest one and what there is."""
    known = sorted(choices)
    near = nearest(name, known)
    hint = f"; did you mean {near!r}?" if near else ""
    rest = f", ... ({len(known)} in all)" if len(known) > shown else ""
    listed = ", ".join(known[:shown]) or "nothing"
    return InputError(f"unknown {what} {name!r}{hint} (there is: {listed}{rest})")


def too_seldom(interval: int, batches: int) -> str:
    """What is said of a validation that no epoch would come to."""
    return (
        f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: set it to {batches} at "
        "most, or trainer.check_val_every_n_epoch=null to count batches over epochs"
    )
