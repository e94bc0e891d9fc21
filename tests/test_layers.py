"""A package imports only packages on lower levels; Hydra and OmegaConf are imported in four packages only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

KD = ROOT / "kd"
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


def package_of(path: Path) -> str:
    """The package or module below kd that a file belongs to; "" for kd itself."""
    return path.relative_to(KD).parts[0].removesuffix(".py").removeprefix("__init__")


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno} imports by a relative path"
            yield from (f"kd.{alias.name}" for alias in node.names) if node.module == "kd" else (node.module,)


def test_every_module_has_a_level() -> None:
    assert {package_of(path) for path in KD.rglob("*.py")} - {""} == LEVEL.keys()


@pytest.mark.parametrize("name", LEVEL)
def test_imports_run_down(name: str) -> None:
    for path in KD.rglob("*.py"):
        for target in imported(path) if package_of(path) == name else ():
            there = target.removeprefix("kd.").partition(".")[0]
            if target.startswith("kd.") and there != name:
                assert LEVEL.get(there, len(LAYERS)) < LEVEL[name], f"{path.relative_to(ROOT)} imports {target}"


def test_hydra_is_imported_in_four_packages_only() -> None:
    for path in KD.rglob("*.py"):
        if any(name.partition(".")[0] in ("hydra", "omegaconf") for name in imported(path)):
            assert package_of(path) in HYDRA, path.relative_to(ROOT)
