"""From an exception to the one line that a user reads."""

from __future__ import annotations

import re
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from kd.errors import InputError, nearest


def explain(error: BaseException) -> str | None:
    """One line that names the key, the value and the nearest right one; None if it is no fault of the input."""
    chain = _chain(error)
    for cause in chain:
        if isinstance(cause, InputError):
            return str(cause)
    complaints = [cause for cause in reversed(chain) if isinstance(cause, OmegaConfBaseException)]
    if complaints:  # the innermost carries a template, the one around it the key
        return _config_line(next((cause for cause in complaints if cause.key is not None), complaints[0]), chain)
    for cause in chain:
        if isinstance(cause, HydraException):
            return _hydra_line(str(cause))
    return None


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return chain


def _config_line(cause: OmegaConfBaseException, chain: list[BaseException]) -> str:
    first = str(cause).splitlines()[0].rstrip(".")
    key = cause.full_key or str(cause.key or "")
    known = _siblings(cause.parent_node)
    if re.match(r"Key '.*' (is not in struct|not in )", first):
        parent, _, name = key.rpartition(".")
        near = nearest(name, known)
        hint = f"; did you mean {f'{parent}.{near}' if parent else near}?" if near else ""
        return f"unknown key {key}{hint} (there is: {', '.join(sorted(known))})"
    override = next((m.group(1) for e in chain if (m := re.match(r"Error merging override (.+)", str(e)))), None)
    return f"{override or key}: {first}{_example(cause)}" if override or key else first


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
