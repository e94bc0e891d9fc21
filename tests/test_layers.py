"""Rooms import downwards only. What does not yet is listed here, and the lists only shrink."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "kd"
LAYERS = (  # from the ground up
    ("errors", "rng"),
    ("files", "registry"),
    ("losses", "models", "data", "optim", "process"),
    ("distill",),
    ("run_folder",),
    ("callbacks",),
    ("train",),
    ("evaluate", "report"),
    ("export", "compare"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HYDRA = ("registry", "process", "compare", "cli")

EXCEPTIONS: set[tuple[str, str]] = set()
HYDRA_EXCEPTIONS: set[str] = set()


def room_of(path: Path) -> str:
    """The package or module below kd that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "kd":
            yield from (f"kd.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """Which rooms each room imports."""
    rooms: dict[str, set[str]] = {room_of(path): set() for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}
    for path in ROOT.rglob("*.py"):
        for name in imported(path) if path != ROOT / "__init__.py" else ():
            room = name.removeprefix("kd.").partition(".")[0]
            if name.startswith("kd.") and room in rooms and room != room_of(path):
                rooms[room_of(path)].add(room)
    return {room: frozenset(others) for room, others in rooms.items()}


def test_every_module_has_a_room() -> None:
    assert graph().keys() == LEVEL.keys()


def test_rooms_import_downwards() -> None:
    upward = {(here, there) for here, rooms in graph().items() for there in rooms if LEVEL[there] >= LEVEL[here]}
    assert upward == EXCEPTIONS


def test_hydra_stays_where_it_is() -> None:
    users = {
        room_of(path)
        for path in ROOT.rglob("*.py")
        if any(name.partition(".")[0] in ("hydra", "omegaconf") for name in imported(path))
    }
    assert users - set(HYDRA) == HYDRA_EXCEPTIONS
