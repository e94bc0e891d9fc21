"""Commands that messages suggest, quoted for a POSIX shell and for Hydra."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PLAIN = re.compile(r"(\.{0,2}/)*[A-Za-z_][\w./+-]*", re.ASCII)
LITERALS = ("true", "false", "null", "inf", "nan")  # Hydra does not parse these as text


def override(key: str, value: str | Path) -> str:
    """``key=value`` for Hydra's parser, quoted where it would read a number, a list or an interpolation."""
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in LITERALS:
        return f"{key}={text}"
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf's escape
    text = re.sub(r"(\\*)(\"|\Z)", lambda match: 2 * match[1] + match[2].replace('"', '\\"'), text)  # Hydra's
    return f'{key}="{text}"'


def command(program: str, *arguments: str, **values: str | Path) -> str:
    """A command line: ``arguments`` as they are, then overrides of ``values``, all quoted for the shell."""
    return shlex.join([program, *arguments, *(override(key, value) for key, value in values.items())])


def path_argument(path: str | Path) -> str:
    """A path as an argument that no command reads as an option, quoted for the shell."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
