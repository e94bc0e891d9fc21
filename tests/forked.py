"""``kd-train`` in a process of its own, forked from one that has imported torch and Lightning: that takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["kd.cli", "kd.train.pipeline", "kd.train.resume", "kd.data.folder", "kd.callbacks.charts", "tensorboard.summary"]
)
NOWHERE = Path(os.devnull)


def kd_train_in(
    folder: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    fresh: bool = False,
    timeout: float = 300,
    command: str = "train",
    before: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[str]:
    """``kd-train WORDS``, or another command, in a folder: what it printed, and its exit code as subprocess has it.

    ``before`` is called first in the forked process. ``fresh`` starts an interpreter instead, for what depends on how
    one starts: several processes, the order of a set.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if fresh:
        started = ["-m", "kd.cli"] if command == "train" else ["-c", f"import kd.cli; kd.cli.{command}()"]
        whole = [sys.executable, *started, *words]
        return subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = begun(folder, words, environment, out, err, command, before)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(words), timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def begun(
    folder: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    out: Path = NOWHERE,
    err: Path = NOWHERE,
    command: str = "train",
    before: Callable[[], object] | None = None,
) -> ForkServerProcess:
    """``kd-train WORDS``, or another command, with this environment alone, as a process that is not waited for."""
    process = FORKS.Process(target=_run, args=(str(folder), words, environment, str(out), str(err), command, before))
    process.start()
    return process


def _run(
    folder: str,
    words: Sequence[str],
    environment: dict[str, str],
    out: str,
    err: str,
    command: str,
    before: Callable[[], object] | None,
) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    multiprocessing.set_start_method(None, force=True)  # workers of loaders are started as in any other process
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [f"kd-{command}", *words]
    import torch

    import kd.cli

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if before is not None:
        before()
    getattr(kd.cli, command)()
