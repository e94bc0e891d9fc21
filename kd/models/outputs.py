"""The logits in a network's output: a tensor, a tuple, a dictionary, an object with named fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kd.errors import InputError

LOGITS = "logits"  # what Hugging Face, and torchvision's networks with auxiliary heads, call the main output


class OutputError(InputError):
    """A network returns several tensors, and ``output`` does not select one."""

    def __init__(self, result: Any) -> None:
        self.result = result
        super().__init__(self.question("output", None))

    def question(self, option: str, classes: int | None) -> str:
        """The message, with the value of ``option`` that fits this number of classes."""
        names = list(tensors_of(self.result))
        fitting = [name for name, tensor in tensors_of(self.result).items() if tensor.shape[-1:] == (classes,)]
        choice = (
            f"set {option}={(fitting or names)[0]} (available: {', '.join(names)})" if names else "none is a tensor"
        )
        return f"the network returns {described(self.result)}; which are the logits? {choice}"


def logits_of(result: Any, output: str | int | None = None) -> Tensor:
    """The logits in a network's output.

    A tensor is the output itself; maps of one pixel [B, C, 1, 1] are flattened to [B, C]. Of a container it is the
    entry that ``output`` names: a key, an attribute or a position, and dotted where containers are nested. Without
    ``output`` it is what is called ``logits``, or the only entry.

    Raises:
        OutputError: several entries, and ``output`` is None.
        InputError: no entry of that name or position, or no tensor.
    """
    if not isinstance(result, Tensor):
        result = _chosen(result, output)
    return result.flatten(1) if result.ndim == 4 and result.shape[-2:] == (1, 1) else result


def _chosen(result: Any, output: str | int | None) -> Tensor:
    entries = entries_of(result)
    if not entries:
        raise InputError(f"the network returns a {type(result).__name__}, not a tensor of logits")
    if output is None:
        name = LOGITS if LOGITS in entries else next(iter(entries)) if len(entries) == 1 else None
        if name is None:
            raise OutputError(result)
        return logits_of(entries[name]) if not isinstance(entries[name], Tensor) else entries[name]
    entry = result
    for part in str(output).split("."):
        entries = {} if isinstance(entry, Tensor) else entries_of(entry)
        key = part if part in entries else _at(entries, part)
        if key is None:
            raise InputError(f"output={output} is not in what the network returns: {described(result)}")
        entry = entries[key]
    if not isinstance(entry, Tensor):
        raise InputError(
            f"output={output} is a {type(entry).__name__}, not a tensor; the network returns {described(result)}"
        )
    return entry


def entries_of(result: Any) -> dict[str, Any]:
    """The entries of a container by key, field or position as text, without those that are None."""
    if isinstance(result, Mapping):
        named = {str(key): value for key, value in result.items()}
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        named = {field.name: getattr(result, field.name, None) for field in dataclasses.fields(result)}
    elif isinstance(result, (tuple, list)):
        names = getattr(result, "_fields", range(len(result)))
        named = {str(name): value for name, value in zip(names, result)}
    else:
        named = dict(getattr(result, "__dict__", {}))
    return {name: value for name, value in named.items() if value is not None}


def described(result: Any) -> str:
    """Describes a network's output: its type, and each entry's name and shape."""
    if isinstance(result, Tensor):
        return str(list(result.shape))
    inner = ", ".join(f"{name} {described(value)}" for name, value in list(entries_of(result).items())[:8])
    return f"{type(result).__name__}({inner})"


def _at(entries: Mapping[str, Any], part: str) -> str | None:
    """The name at a position, counted from the end if negative."""
    names = list(entries)
    position = int(part) if part.lstrip("-").isdigit() else len(names)
    return names[position] if -len(names) <= position < len(names) else None


def tensors_of(result: Any) -> dict[str, Tensor]:
    """The tensors in nested containers, by dotted name."""
    tensors: dict[str, Tensor] = {}
    for name, value in entries_of(result).items():
        inner = {"": value} if isinstance(value, Tensor) else tensors_of(value)
        tensors |= {f"{name}.{below}".rstrip("."): tensor for below, tensor in inner.items()}
    return tensors
