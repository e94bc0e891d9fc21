"""What a configuration node refers to: the source of the user's code, library versions, contents of files."""

from __future__ import annotations

import ast
import hashlib
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from kd.registry import models

# Their versions affect only rounding; changes of training in kd itself increment kd.distill.identity.RULE.
NO_VERSION = ("kd", "torch", "pytorch_lightning", "lightning_fabric", "builtins")
HUBS = ("torchvision", "timm")  # networks of the registry that another library defines
LIBRARIES = [Path(sysconfig.get_paths()[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]
LIBRARIES.append(Path(__file__).resolve().parents[1])


def code_of(node: Any) -> dict[str, str]:
    """The code that a node refers to: module to the sha256 of its source, or library to its version.

    It covers every ``_target_``, the ``path`` of ``import``, and the user's modules that these import, directly or
    indirectly. Comments and layout do not affect the digests.

    Args:
        node: plain containers; the code that it refers to is imported.
    """
    return _code(name for path in _named(node) for name in _modules_of(path))


def code_of_classes(kinds: Iterable[type]) -> dict[str, str]:
    """The same for classes: the code of the modules that define them."""
    return _code(kind.__module__ for kind in kinds)


def _code(modules: Iterable[str]) -> dict[str, str]:
    digests: dict[str, str] = {}
    pending = sorted(set(modules))
    while pending:
        name = pending.pop()
        if name in digests:
            continue
        if (path := _file_of(name)) is not None:
            tree = _parsed(path)
            digests[name] = "unknown" if tree is None else hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
            pending += [each for each in _imported(tree, name, path) if _file_of(each) is not None] if tree else []
        elif top := _library(name):
            digests[top] = _version(top)
    return digests


def _file_of(module: str) -> Path | None:
    """The file of a user's module; None for modules of kd, Python or an installed package."""
    top, loaded = module.partition(".")[0], sys.modules.get(module)
    if loaded is None and top != module and _file_of(top) is None:
        return None  # otherwise find_spec would import an installed package
    try:
        spec = None if loaded is not None else find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    file = getattr(loaded, "__file__", None) or (spec.origin if spec is not None else None)
    if not file or not str(file).endswith(".py"):
        return None
    path = Path(str(file)).resolve()
    installed = "site-packages" in path.parts or "dist-packages" in path.parts
    return None if installed or any(path.is_relative_to(folder) for folder in LIBRARIES) else path


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text())
    except (OSError, ValueError, SyntaxError):
        return None


def _imported(tree: ast.Module, module: str, path: Path) -> Iterator[str]:
    """The modules that a module imports, also within functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def with_content(node: Any) -> Any:
    """The node with every path to a file or a run folder replaced by the sha256 of its content."""
    if isinstance(node, Mapping):
        return {key: value if key == "_target_" else with_content(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [with_content(value) for value in node]
    return content_of(node) or node


def content_of(value: Any) -> str | None:
    """``sha256:...`` of the file at a path, or of the student in a run folder; None if there is neither."""
    if not isinstance(value, str) or not (os.sep in value or Path(value).suffix or os.path.isdir(value)):
        return None
    try:
        path = Path(value).expanduser()
        path = path / "student.safetensors" if path.is_dir() else path
        if not path.is_file():
            return None
        status = path.stat()
        return f"sha256:{_file_sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)}"
    except (OSError, ValueError, RuntimeError):
        return None


@lru_cache(maxsize=256)
def _file_sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(node: Any) -> Iterator[str]:
    """The dotted paths to code in a node."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            yield target
            name = models.name_of(target)
            if name == "import" and isinstance(node.get("path"), str):
                yield node["path"]
            if name in HUBS:
                yield str(name)
        for value in node.values():
            yield from _named(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _named(value)


def _modules_of(path: str) -> list[str]:
    """The module that contains a path's object, and the module that defines it."""
    if path in HUBS:
        return [path]
    try:
        thing = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return []
    module = path.partition(":")[0]
    while module and module not in sys.modules:
        module = module.rpartition(".")[0]
    defined = getattr(thing, "__module__", None)
    return [name for name in (module, defined) if isinstance(name, str) and name]


def _library(module: str) -> str:
    """The package of a module that is not the user's; empty if its version is irrelevant."""
    top = module.partition(".")[0]
    return "" if top in NO_VERSION or top in sys.stdlib_module_names else top


def _version(package: str) -> str:
    for name in (package, *packages_distributions().get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
