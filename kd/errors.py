"""The errors that end a command, by exit code, and the nearest match of an unknown name."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Invalid input from the user: shown as one line ``error: ...``, exit code 2."""


class TrainingFailed(RuntimeError):
    """Training cannot continue although the input is valid: one line ``error: ...``, exit code 3."""


class Stopped(Exception):
    """A signal ended the run after its state was saved: one line, exit code 128 + ``signum``."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def disk_fault(error: BaseException | None) -> OSError | None:
    """The OSError behind an exception, which libraries wrap in their own; None if there is none."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def located(key: str) -> Iterator[None]:
    """Puts the configuration key before the message of an error that a constructor raises."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise with_key(key, error) from error


def with_key(key: str, error: BaseException) -> InputError:
    """An InputError with the first line of ``error`` after its key, unless the line begins with the key."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(line if line.startswith(key) else f"{key}: {line}")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to ``name``, or None if none is similar."""
    lowered = {choice.lower(): choice for choice in choices}
    match = get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    return lowered[match[0]] if match else None


def unknown(kind: str, name: str, choices: Iterable[str], limit: int = 20) -> InputError:
    """The error for a name that is not among ``choices``: names the nearest one and lists up to ``limit``."""
    available = sorted(choices)
    near = nearest(name, available)
    hint = f"; did you mean {near!r}?" if near else ""
    more = f", ... ({len(available)} in all)" if len(available) > limit else ""
    listed = ", ".join(available[:limit]) or "none"
    return InputError(f"unknown {kind} {name!r}{hint} (available: {listed}{more})")


def interval_too_long(interval: int, batches: int) -> str:
    """The message for a validation interval that is longer than an epoch."""
    return (
        f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: set it to {batches} at "
        "most, or trainer.check_val_every_n_epoch=null to count batches over epochs"
    )
