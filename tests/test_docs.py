"""What the documentation names exists, and its commands compose."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from paths import ROOT

import kd
from kd import InputError
from kd.cli import compose
from kd.compare.launch import _composed, parse_options
from kd.compare.plan import plan

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [path for path in sorted((ROOT / "kd").rglob("*.py")) if path.name != "aliases.py"]  # which lists old paths
CONFIGS = sorted(Path(kd.CONFIG_DIR).rglob("*.yaml"))
NO_OBJECTS = ("kd.plugins", "kd.format_version")  # an entry-point group, a key of a file
PLACEHOLDERS = ("NAME", "CLASS", "cosine", "mine.py")


def exists(name: str) -> bool:
    """Whether a dotted name can be imported: a module, or attributes of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = import_module(".".join(parts[:count]))
            for part in parts[count:]:
                value = getattr(value, part)
        except (ImportError, AttributeError):
            continue
        return True
    return False


def missing(pattern: str, paths: list[Path], found: Callable[[str, Path], bool]) -> list[str]:
    """Where a name that the pattern matches in a file is not found, and is no placeholder."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in re.findall(pattern, path.read_text())
        if not any(word in name for word in PLACEHOLDERS) and not found(name, path)
    ]


def test_references_of_docstrings_resolve() -> None:
    def found(name: str, path: Path) -> bool:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        classes = [value for value in vars(import_module(module)).values() if isinstance(value, type)]
        return exists(name) or exists(f"{module}.{name}") or any(hasattr(each, name) for each in classes)

    assert not missing(r":(?:class|func|mod|meth|attr|data|exc):`~?([^`]+)`", SOURCES, found)


def test_dotted_names_resolve() -> None:
    pattern = r"(?<![\w/.-])kd(?:\.[A-Za-z_]\w*)+"
    assert not missing(pattern, [*PAGES, *SOURCES, *CONFIGS], lambda name, _: name in NO_OBJECTS or exists(name))


def test_files_exist() -> None:
    files = [f"/{path.relative_to(ROOT)}" for path in ROOT.rglob("*.py")]
    python = r"(?<![\w./-])[\w/]*\w\.py\b"
    assert not missing(python, [*PAGES, *SOURCES], lambda name, _: any(file.endswith(f"/{name}") for file in files))
    paths = r"(?<![\w./{}$-])(?:kd|docs|configs|tests|benchmarks|scripts|examples)/[\w./*-]*[\w*]"
    assert not missing(paths, [*PAGES, *SOURCES], lambda name, _: any(ROOT.glob(name)))
    links = r"\]\(((?![a-z]+:|#)[\w./-]*\.\w+)(?:#[\w-]*)?\)"
    assert not missing(links, PAGES, lambda name, path: (path.parent / name).exists())


def test_the_readme_counts_objectives_and_golden_cases() -> None:
    objectives = len(list((ROOT / "configs/objective").glob("*.yaml")))
    cases = len(json.loads((ROOT / "tests/golden/index.json").read_text())["cases"])
    text = (ROOT / "README.md").read_text()
    assert f"{objectives} objectives" in text
    assert f"{cases} golden cases" in text


def commands() -> Iterator[tuple[str, bool]]:
    """The commands in the pages' blocks of code, and whether the page shows an error as their output."""
    for path in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            for line, following in zip(lines, [*lines[1:], ""], strict=True):
                line = line.removeprefix("$ ").partition("  #")[0].rstrip()
                if re.match("kd-(train|compare|evaluate|export|report)( |$)", line):
                    yield line, following.startswith("error: ")


def composed(name: str, words: list[str]) -> None:
    if name == "compare":
        options, rest = parse_options(words)
        for cell in plan(options.objective, options.seeds, options.shuffled, options.variants or {})[:2]:
            compose(*_composed(cell, rest))
        return
    parsed = [OverridesParser.create().parse_override(word) for word in words]
    firsts = [
        f"{each.key_or_group}={next(each.sweep_string_iterator())}"
        if each.is_sweep_override()
        else str(each.input_line)
        for each in parsed
    ]
    compose(*firsts, config=name)


@pytest.mark.parametrize(("command", "fails"), [pytest.param(*each, id=each[0]) for each in dict(commands()).items()])
def test_commands_compose(command: str, fails: bool) -> None:
    program, *words = shlex.split(command)
    if "..." in command or "[out=" in command or "--config-dir" in words or re.search("hydra/launcher|optuna", command):
        return  # placeholders, the user's own files, and packages that are not installed here
    words = [word for word in words if word not in ("-m", "--multirun", "--cfg", "job")]
    if fails:
        with pytest.raises(InputError):
            composed(program.removeprefix("kd-"), words)
    else:
        composed(program.removeprefix("kd-"), words)
