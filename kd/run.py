"""The run folder: what a run leaves behind, and how to get the student back out of it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from kd import predictor
from kd.command import override
from kd.errors import NO_SPACE, InputError, TrainingFailed, placed
from kd.models.check import usable
from kd.models.containers import read
from kd.models.cost import size_of as size_of
from kd.models.hub import offered
from kd.models.keys import without_prefix
from kd.models.normalized import Normalized
from kd.models.weights import fingerprint, prepare
from kd.processes import launch, started_outside
from kd.registry import build, models

log = logging.getLogger(__name__)

FORMAT = 1
STUDENT = "student.safetensors"
PREDICTIONS = "predictions.safetensors"
HISTORY = "history.csv"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"


def shown(folder: Path) -> Path:
    """The folder as the user would type it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        TrainingFailed: no space, or another fault of the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in NO_SPACE:
            raise
        raise TrainingFailed(f"{path} cannot be written: {os.strerror(error.errno)}") from error


@contextmanager
def held(folder: Path, new: bool = False, wait: bool = False) -> Iterator[None]:
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
            here, word = shown(folder), quote(override("resume", shown(folder)))
            raise InputError(f"{here} holds a run already: go on with it by {word}, or give another hydra.run.dir")
        yield


def _seize(lock: TextIO, folder: Path, wait: bool) -> None:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        if not wait:
            here = shown(folder)
            raise InputError(f"another process is training in {here}; wait for it, or stop it first") from error
        log.info("another process is training in %s; waiting for it", folder)
        fcntl.lockf(lock, fcntl.LOCK_EX)
    except OSError:
        log.warning("%s is on a file system without locks: see to it that no two processes train in it", folder)


def _entered(folder: Path) -> bool:
    """Whether this launch's first process is in a folder, or need not be as a run is finished there."""
    lock = folder / ".lock"
    return (folder / SUMMARY).is_file() or (lock.is_file() and lock.read_text() == launch())


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes ``summary.json``; its schema is in docs/run-folder.md."""
    write_text(folder / SUMMARY, json.dumps({"format_version": FORMAT, **summary}, indent=2) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads a run's ``summary.json``.

    Raises:
        InputError: no finished run in the folder, or one from a later version of kd.
    """
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no finished run: {path.name} is absent or damaged") from error
    number = summary.get("format_version") if isinstance(summary, dict) else None
    if not isinstance(number, int):
        raise InputError(f"{folder} is no finished run: {path.name} is absent or damaged")
    if number > FORMAT:
        raise InputError(f"{path} was written by a later version of kd")
    return summary


def is_tested(summary: Mapping[str, Any]) -> bool:
    """Whether a run's test part has been measured, or there is none."""
    return summary["metrics"].get("test") is not None


def is_finished(folder: Path) -> bool:
    """Whether a run folder's run was trained and tested to its end, by a summary that is there."""
    try:
        return (folder / SUMMARY).is_file() and is_tested(read_summary(folder))
    except (InputError, KeyError, TypeError, AttributeError):  # whoever reads it says what is wrong with it
        return True


def names_in(summary: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes that a run was trained on; None if its summary names none, as before there were any."""
    data = summary.get("data")
    names = data.get("names") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(names, list) or len(names) != data.get("classes"):
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def require(summary: Mapping[str, Any], folder: Path, *keys: str) -> None:
    """Checks that a summary, which anyone may have written, says ``part.key`` for each of ``keys``.

    Raises:
        InputError: a key is absent; it is named.
    """
    for key in keys:
        part, _, name = key.partition(".")
        if part not in summary or (name and not (isinstance(summary[part], dict) and name in summary[part])):
            raise InputError(f"{folder / SUMMARY} is damaged: it does not say {key}")


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    found = {"python": platform.python_version()}
    for package in ("kd-lightning", "torch", "torchvision", "pytorch-lightning", "hydra-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "checkout"
    return found


def network_of(
    node: Mapping[str, Any],
    at: str,
    classes: int,
    shape: list[int],
    data_mean: Any,
    data_std: Any,
    trust: bool = True,
    **options: Any,
) -> Normalized:
    """A network from its own configuration node, with its normalisation in front.

    ``options`` are those of :func:`kd.models.weights.prepare`: its weights, say.
    """
    network = build(node, at, trust=trust, **offered(classes, shape))
    if not isinstance(network, nn.Module):
        raise InputError(f"{at} gave a {type(network).__name__}, not an nn.Module")
    side = options.get("size")
    network = usable(network, at, (shape[0], side, side) if side else shape)
    with placed(at):
        return prepare(network, data_mean, data_std, **options)


def name_of(node: Mapping[str, Any]) -> str:
    """What a network is called: its name in its library, that of an imported function, else the registered or dotted
    name."""
    target = str(node["_target_"])
    known = models.name_of(target)
    function = str(node.get("path") or "").rpartition(":")[2] if known == "import" else ""
    return str(node.get("name") or function or known or target.rpartition(".")[2])


def title_of(node: Mapping[str, Any]) -> str:
    """What a network is called in messages: an imported one by its path."""
    return str(node.get("path") or name_of(node))


def _check_described(student: Mapping[str, Any], written: Mapping[str, Any], folder: Path) -> None:
    """Refuses a summary that does not describe the student as its file of weights does."""
    for key in ("config", "mean", "std", "size"):
        if key in written and written[key] != student.get(key):
            raise InputError(
                f"{folder / SUMMARY} was edited: it says student.{key}={student.get(key)}, but {STUDENT} was written "
                f"with {written[key]}"
            )


def load_student(folder: str | Path, trust: bool = False) -> nn.Module:
    """The student of a finished run, in eval mode: images (uint8, or float in [0, 1]) to logits.

    Its attribute ``net`` is the bare network, and ``classes`` the names of the classes, None where the run's data
    named none. It is in the precision in which the run kept it: float32, or float64.

    Args:
        folder: a run folder.
        trust: whether a class that is not registered with kd may be imported, as the run folder names it.

    Raises:
        InputError: no finished run, or a student that is not registered and not trusted.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    require(summary, folder, *(f"student.{key}" for key in ("name", "config", "mean", "std")))
    require(summary, folder, *(f"data.{key}" for key in ("config", "classes", "shape")))
    student, data = summary["student"], summary["data"]
    options = {key: student[key] for key in ("mean", "std", "size", "output") if key in student}
    options["checkpoint"] = str(folder / STUDENT)
    front = (student["mean"], student["std"])
    network = network_of(student["config"], "student", data["classes"], data["shape"], *front, trust, **options)
    weights = without_prefix(read(folder / STUDENT), network.net.state_dict())
    _check_described(student, weights.about, folder)
    state = weights.state
    if any(tensor.dtype == torch.float64 for tensor in state.values()):  # of a run in trainer.precision=64-true
        network.double().net.load_state_dict(state)
    if student.get("sha256", recorded := fingerprint(network.net)) != recorded:
        raise InputError(f"{folder / STUDENT} is not what the run wrote: its sha256 differs from {SUMMARY}'s")
    about = student.get("predictor")
    answering = predictor.restore(network.eval(), about, data["shape"], folder, trust) if about else network
    answering.classes = names_in(summary)
    return answering.eval()
