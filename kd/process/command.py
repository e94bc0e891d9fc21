"""Commands that a message suggests: quoted, so that they can be pasted into a POSIX shell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PLAIN = re.compile(r"(\.{0,2}/)*[A-Za-z_][\w./+-]*", re.ASCII)
WORDS = ("true", "false", "null", "inf", "nan")  # which Hydra takes for something else than text


def override(key: str, value: str | Path) -> str:
    """``key=value`` for Hydra's parser, which quotes what it would take for a number, a list, an interpolation."""
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return f"{key}={text}"
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf's escape
    text = re.sub(r"(\\*)(\"|\Z)", lambda found: 2 * found[1] + found[2].replace('"', '\\"'), text)  # Hydra's
    return f'{key}="{text}"'


def command(program: str, *words: str, **values: str | Path) -> str:
    """A command line: ``words`` as they are, and overrides of ``values``, all quoted for the shell."""
    return shlex.join([program, *words, *(override(key, value) for key, value in values.items())])


def path_argument(path: str | Path) -> str:
    """A path as an argument that no command takes for an option, quoted for the shell."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
