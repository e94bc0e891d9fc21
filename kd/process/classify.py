"""From an exception to an exit code and one line."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf.errors import OmegaConfBaseException

from kd.errors import NO_SPACE, InputError, Stopped, TrainingFailed, nearest, too_seldom
from kd.registry import current, parameters

BUG, INPUT, FAILED = 1, 2, 3


LESS = "a smaller data.batch_size needs less"


def classify(error: BaseException) -> tuple[int, str | None]:
    """The exit code and the line for an exception; no line says that it is a bug, of kd or of the user's own code."""
    chain = _chain(error)
    for cause in chain:
        match cause:
            case InputError():
                return INPUT, _line(cause)
            case TrainingFailed():
                return FAILED, _line(cause)
            case Stopped():
                return 128 + cause.signum, _line(cause)
            case _ if isinstance(cause, _lightnings("SIGTERMException")):
                return 128 + signal.SIGTERM, "stopped by SIGTERM"
            case KeyboardInterrupt():
                return 128 + signal.SIGINT, "stopped by SIGINT"
    if line := next(filter(None, map(_shortage, chain)), None):
        return FAILED, line
    known = (_of_data, _of_network)
    line = next((line for cause in chain for ask in known if (line := ask(cause))), None) or _of_configuration(chain)
    if line:
        return INPUT, line
    return BUG, None


def _lightnings(name: str) -> Any:
    """An exception of Lightning's; nothing where it has not been imported, which takes seconds."""
    return getattr(sys.modules.get("pytorch_lightning.utilities.exceptions"), name, ())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split("\n"))


def _shortage(cause: BaseException) -> str | None:
    """What the machine has too little of, if that is what an exception says."""
    text = _line(cause)
    if isinstance(cause, OSError) and cause.errno in NO_SPACE:
        return f"no space left: {os.strerror(cause.errno)}{f': {cause.filename}' if cause.filename else ''}"
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
        return f"out of memory{f' ({text})' if text else ''}; {LESS}, and so do fewer data.workers"
    if not isinstance(cause, RuntimeError):
        return None
    if re.search(r"shared memory|\(shm\)|</torch_\d", text):
        size = "docker run --shm-size=8g enlarges it"
        return f"the shared memory in /dev/shm is too small for the data's workers; {size}, or lower data.workers"
    if worker := re.search(r"DataLoader worker \(pid.*?\) (is killed by signal: \w+|exited unexpectedly)", text):
        return f"a worker of the data {worker[1]}, as a rule for lack of memory; {LESS}, and so do fewer data.workers"
    if isinstance(cause, torch.OutOfMemoryError) or re.search(r"\bout of memory\b|ALLOC_FAILED", text):
        needed = re.search(r"Tried to allocate [\d.]+ \w+", text)
        return f"out of memory on the GPU{f' ({needed[0].lower()})' if needed else ''}; {LESS}"
    if re.search(r"not enough memory|can't allocate memory", text):
        return f"out of memory; {LESS}"
    return None


def _of_data(cause: BaseException) -> str | None:
    """What is wrong with the data or the number of its batches, where only torch or Lightning noticed."""
    text = _line(cause)
    if stray := re.search(r"Target (-?\d+) is out of bounds", text):
        return f"the data has the label {stray[1]}, which is none of its classes, counted from 0"
    if sizes := re.search(r"stack expects each tensor to be equal size, but got (\[.*?\]) .*? and (\[.*?\])", text):
        return f"the data's images are of several shapes, {sizes[1]} and {sizes[2]}: bring them to one, by resizing say"
    if kind := re.search(r"default_collate: batch must contain .*; found <class '(?:\w+\.)*(\w+)'>", text):
        return (
            f"a data set gives samples with a {kind[1]}, of which no batch can be made: end its transform with "
            "torchvision.transforms.v2.PILToTensor(), or give the loader a collate_fn"
        )
    if every := re.search(r"`val_check_interval` \((\d+)\) must be less .* training batches \((\d+)\)", text):
        return too_seldom(int(every[1]), int(every[2]))
    return None


def _of_network(cause: BaseException) -> str | None:
    """What a network of one's own does, where only torch noticed."""
    text = str(cause) if isinstance(cause, RuntimeError) else ""
    if "view size is not compatible" in text:
        return "view() is called on maps in channels-last layout: use reshape() there, or set speed.channels_last=false"
    if "parameters that were not used in producing the loss" in text:
        unused = "some parameters get no gradient, as an auxiliary head's do that no term looks at"
        return f"{unused}, and processes wait for them: set trainer.strategy=ddp_find_unused_parameters_true"
    return None


def _of_configuration(chain: list[BaseException]) -> str | None:
    """One line that names the key, the value and the nearest right one; None if it is no fault of the input."""
    complaints = [cause for cause in reversed(chain) if isinstance(cause, OmegaConfBaseException)]
    if complaints:  # the innermost carries a template, the one around it the key
        return _config_line(next((cause for cause in complaints if cause.key is not None), complaints[0]), chain)
    for cause in chain:
        if isinstance(cause, HydraException):
            return _hydra_line(str(cause))
        if isinstance(cause, _lightnings("MisconfigurationException")):
            return f"trainer: {_line(cause)}"
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and what it came from; not what it replaced on purpose (``raise ... from None``)."""
    chain = [error]
    while True:
        last = chain[-1]
        inner = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if inner is None or inner in chain:
            return chain
        chain.append(inner)


def _config_line(cause: OmegaConfBaseException, chain: list[BaseException]) -> str:
    first = str(cause).splitlines()[0].rstrip(".")
    key = cause.full_key or str(cause.key or "")
    known = _siblings(cause.parent_node)
    if re.match(r"Key '.*' (is not in struct|not in )", first):
        parent, _, name = key.rpartition(".")
        addable = _addable(cause.parent_node, parent)
        if name in addable:
            return f"{key} is not a key of the configuration as it is; write {addable[name]}{_value(chain)}"
        near = nearest(name, [*known, *(addable if parent else ())])
        right = addable.get(near or "", f"{parent}.{near}" if parent else near)
        hint = f"; did you mean {right}?" if near else ""
        return f"unknown key {key}{hint} (there is: {', '.join(sorted(known))})"
    override = next((m.group(1) for e in chain if (m := re.match(r"Error merging override (.+)", str(e)))), None)
    override = override and override.removeprefix("++")
    return f"{override or key}: {first}{_example(cause)}" if override or key else first


def _addable(node: Any, parent: str) -> dict[str, str]:
    """What else a node takes, by name, and how to write it; of the root the arguments of Lightning's Trainer."""
    place, around = (parent, node) if parent else ("trainer", node.get("trainer") or {})
    try:
        names = parameters(get_object(current(str(around["_target_"]))))
    except Exception:  # no node of a class, or none that can be imported
        return {}
    words = {name: f"{place}.{name}" if name in around else f"+{place}.{name}" for name in names}
    return {name: word for name, word in words.items() if not parent or word.startswith("+")}


def _value(chain: list[BaseException]) -> str:
    """``=value`` as it was typed."""
    typed = (re.search(r"To append to your config use \+[^=]+(=.*)", str(error)) for error in chain)
    return next((match[1] for match in typed if match), "=...")


def _example(cause: OmegaConfBaseException) -> str:
    try:
        return f"; for example {cause.key}={cause.parent_node[cause.key]}"
    except Exception:
        return ""


def _siblings(node: Any) -> list[str]:
    try:
        return [str(key) for key in node]
    except Exception:
        return []


def _hydra_line(message: str) -> str:
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    missing = re.match(r"(?:In '.*': )?Could not find '(.+?)/?([^/']+)'", lines[0])
    options = [line for line in lines[1:] if not line.endswith(":") and not line.startswith("Config search path")]
    if missing and len(lines) > 1 and "Available options" in message:
        group, name = missing.groups()
        choices = [line for line in options if re.fullmatch(r"[\w.\-]+", line)]
        near = nearest(name, choices)
        hint = f"; did you mean {group}={near}?" if near else ""
        return f"unknown choice {group}={name}{hint} (there is: {', '.join(sorted(choices))})"
    kept = [line for line in lines if not line.startswith(("See http", "Config search path", "provider="))]
    return " ".join(kept)
