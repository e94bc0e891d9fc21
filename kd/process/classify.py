"""Maps an exception to an exit code and a one-line message."""

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

from kd.errors import NO_SPACE, InputError, Stopped, TrainingFailed, interval_too_long, nearest
from kd.registry import current, parameters

BUG, INPUT, FAILED = 1, 2, 3

LESS = "reduce data.batch_size"


def classify(error: BaseException) -> tuple[int, str | None]:
    """The exit code and the message for an exception; no message means a bug, in kd or in the user's code."""
    chain = _chain(error)
    for cause in chain:
        match cause:
            case InputError():
                return INPUT, _line(cause)
            case TrainingFailed():
                return FAILED, _line(cause)
            case Stopped():
                return 128 + cause.signum, _line(cause)
            case _ if isinstance(cause, _of_lightning("SIGTERMException")):
                return 128 + signal.SIGTERM, "stopped by SIGTERM"
            case KeyboardInterrupt():
                return 128 + signal.SIGINT, "stopped by SIGINT"
    if line := next(filter(None, map(_shortage, chain)), None):
        return FAILED, line
    messages = (of(cause) for cause in chain for of in (_of_data, _of_network))
    if line := next(filter(None, messages), None) or _of_configuration(chain):
        return INPUT, line
    return BUG, None


def _of_lightning(name: str) -> Any:
    """An exception class of Lightning, () if it has not been imported: importing it takes seconds."""
    return getattr(sys.modules.get("pytorch_lightning.utilities.exceptions"), name, ())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split("\n"))


def _shortage(cause: BaseException) -> str | None:
    """The message for a lack of disk, memory or shared memory; None for any other exception."""
    text = _line(cause)
    if isinstance(cause, OSError) and cause.errno in NO_SPACE:
        return f"no space left: {os.strerror(cause.errno)}{f': {cause.filename}' if cause.filename else ''}"
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
        return f"out of memory{f' ({text})' if text else ''}; {LESS} or data.workers"
    if not isinstance(cause, RuntimeError):
        return None
    if re.search(r"shared memory|\(shm\)|</torch_\d", text):
        return (
            "the shared memory in /dev/shm is too small for the data workers; enlarge it (docker run --shm-size=8g) or "
            "reduce data.workers"
        )
    if worker := re.search(r"DataLoader worker \(pid.*?\) (is killed by signal: \w+|exited unexpectedly)", text):
        return f"a data worker {worker[1]}, usually for lack of memory; {LESS} or data.workers"
    if isinstance(cause, torch.OutOfMemoryError) or re.search(r"\bout of memory\b|ALLOC_FAILED", text):
        needed = re.search(r"Tried to allocate [\d.]+ \w+", text)
        return f"out of memory on the GPU{f' ({needed[0].lower()})' if needed else ''}; {LESS}"
    if re.search(r"not enough memory|can't allocate memory", text):
        return f"out of memory; {LESS}"
    return None


def _of_data(cause: BaseException) -> str | None:
    """The message for an error in the data, or in the number of its batches, that only torch or Lightning detected."""
    text = _line(cause)
    if label := re.search(r"Target (-?\d+) is out of bounds", text):
        return f"the data has the label {label[1]}, which is none of its classes, counted from 0"
    if sizes := re.search(r"stack expects each tensor to be equal size, but got (\[.*?\]) .*? and (\[.*?\])", text):
        return f"the data's images are of several shapes, {sizes[1]} and {sizes[2]}: resize them to one"
    if kind := re.search(r"default_collate: batch must contain .*; found <class '(?:\w+\.)*(\w+)'>", text):
        return (
            f"a data set returns samples with a {kind[1]}, which cannot be batched: end its transform with "
            "torchvision.transforms.v2.PILToTensor(), or set the collate_fn of its dataloader"
        )
    if interval := re.search(r"`val_check_interval` \((\d+)\) must be less .* training batches \((\d+)\)", text):
        return interval_too_long(int(interval[1]), int(interval[2]))
    return None


def _of_network(cause: BaseException) -> str | None:
    """The message for an error in a custom network that only torch detected."""
    text = str(cause) if isinstance(cause, RuntimeError) else ""
    if "view size is not compatible" in text:
        return "view() is called on a tensor in channels-last layout: use reshape(), or set speed.channels_last=false"
    if "parameters that were not used in producing the loss" in text:
        unused = "some parameters get no gradient, for example those of an auxiliary head that no term uses"
        return f"{unused}, and DDP waits for them: set trainer.strategy=ddp_find_unused_parameters_true"
    return None


def _of_configuration(chain: list[BaseException]) -> str | None:
    """The message with key, value and the nearest valid one; None if the configuration is not at fault."""
    errors = [cause for cause in reversed(chain) if isinstance(cause, OmegaConfBaseException)]
    if errors:  # the innermost holds a template, the one around it the key
        return _config_line(next((error for error in errors if error.key is not None), errors[0]), chain)
    for cause in chain:
        if isinstance(cause, HydraException):
            return _hydra_line(str(cause))
        if isinstance(cause, _of_lightning("MisconfigurationException")):
            return f"trainer: {_line(cause)}"
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and its causes, without those suppressed by ``raise ... from None``."""
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
    siblings = _siblings(cause.parent_node)
    if re.match(r"Key '.*' (is not in struct|not in )", first):
        parent, _, name = key.rpartition(".")
        addable = _addable(cause.parent_node, parent)
        if name in addable:
            return f"{key} is not in the configuration yet; set {addable[name]}{_value(chain)}"
        near = nearest(name, [*siblings, *(addable if parent else ())])
        suggestion = addable.get(near or "", f"{parent}.{near}" if parent else near)
        hint = f"; did you mean {suggestion}?" if near else ""
        return f"unknown key {key}{hint} (available: {', '.join(sorted(siblings))})"
    override = next((m.group(1) for e in chain if (m := re.match(r"Error merging override (.+)", str(e)))), None)
    override = override and override.removeprefix("++")
    return f"{override or key}: {first}{_example(cause)}" if override or key else first


def _addable(node: Any, parent: str) -> dict[str, str]:
    """Further arguments of a node's class by name, and how to set each; of the root those of Lightning's Trainer."""
    path, owner = (parent, node) if parent else ("trainer", node.get("trainer") or {})
    try:
        names = parameters(get_object(current(str(owner["_target_"]))))
    except Exception:  # no node of a class, or none that can be imported
        return {}
    keys = {name: f"{path}.{name}" if name in owner else f"+{path}.{name}" for name in names}
    return {name: key for name, key in keys.items() if not parent or key.startswith("+")}


def _value(chain: list[BaseException]) -> str:
    """``=value`` as typed."""
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
        return f"unknown choice {group}={name}{hint} (available: {', '.join(sorted(choices))})"
    return " ".join(line for line in lines if not line.startswith(("See http", "Config search path", "provider=")))
