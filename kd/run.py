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
from typing import Any, TextIO

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kd import predictor
from kd.errors import InputError, placed
from kd.models.hub import offered
from kd.models.normalized import Normalized
from kd.models.weights import Origin, fingerprint, prepare
from kd.processes import launch, started_outside
from kd.registry import build, defaults_of, models

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


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


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
            here = shown(folder)
            raise InputError(
                f"{here} holds a run already: go on with it by resume={here}, or give another hydra.run.dir"
            )
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
    write(folder / SUMMARY, json.dumps({"format_version": FORMAT, **summary}, indent=2) + "\n")


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
    node: Mapping[str, Any], at: str, classes: int, shape: list[int], mean: Any, std: Any, trust: bool = True
) -> Normalized:
    """A network from its configuration node, with its normalisation in front and its weights if it names any."""
    offer = offered(classes, shape)
    around = {**defaults_of(prepare), **defaults_of(Origin)}
    own = {key: value for key, value in node.items() if key not in around}
    network = build(own, at, trust=trust, **offer)
    if not isinstance(network, nn.Module):
        raise InputError(f"{at} gave a {type(network).__name__}, not an nn.Module")
    with placed(at):
        return prepare(network, mean, std, **{key: node[key] for key in defaults_of(prepare) if key in node})


def name_of(node: Mapping[str, Any]) -> str:
    """What a network is called: its name in its library, else the registered or dotted name."""
    target = str(node["_target_"])
    return str(node.get("name") or models.name_of(target) or target.rpartition(".")[2])


def size_of(network: nn.Module, shape: list[int]) -> dict[str, int]:
    """Parameters, and multiply-accumulates of convolutions and matrix products for one image."""
    training = network.training
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, *shape, device=device))
    network.train(training)
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}


def load(folder: str | Path, trust: bool = False) -> nn.Module:
    """The student of a finished run, in eval mode: images (uint8, or float in [0, 1]) to logits.

    Its attribute ``net`` is the bare network, and ``classes`` the names of the classes, None where the run's data
    named none.

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
    node = {
        **student["config"],
        "checkpoint": str(folder / STUDENT),
        **{key: student[key] for key in ("mean", "std", "size") if key in student},
    }
    mean, std = student["mean"], student["std"]
    network = network_of(node, "student", data["classes"], data["shape"], mean, std, trust=trust)
    if student.get("sha256", recorded := fingerprint(network.net)) != recorded:
        raise InputError(f"{folder / STUDENT} is not what the run wrote: its sha256 differs from {SUMMARY}'s")
    about = student.get("predictor")
    answering = predictor.restore(network.eval(), about, data["shape"], folder, trust) if about else network
    answering.classes = names_in(summary)
    return answering.eval()
