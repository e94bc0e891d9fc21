"""The same commands from an uninstalled checkout and from a wheel, in any folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import kd.registry

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    "data=synthetic",
    "data.shape=[1,8,8]",
    "data.train=200",
    "data.test=50",
    "teacher=none",
    "objective=ce",
    "trainer=debug",
)


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


def test_a_plain_checkout_runs_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/train.py"), *QUICK, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/summary.json").is_file()


@pytest.mark.slow
def test_a_wheel_runs_from_any_folder_with_the_users_configs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    ZipFile(wheel).extractall(site)
    packed = {str(p.relative_to(site / "kd/configs")) for p in (site / "kd/configs").rglob("*.yaml")}
    assert packed == {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    assert (site / "kd/py.typed").is_file()
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\nseed: 7\n")
    script = f"""
import sys
sys.path.insert(0, {str(site)!r})
import kd.cli
assert kd.__file__.startswith({str(site)!r})
kd.cli.train()
"""
    command = [sys.executable, "-c", script, "--config-dir", "conf", "experiment=mine", *QUICK, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in (tmp_path / "run/config.yaml").read_text()


def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): ast.parse(
            path.read_text()
        )
        for path in (ROOT / "kd").rglob("*.py")
    }


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """What a module imports from kd when it is itself imported."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kd":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found - {"kd"}


def test_imports_have_one_direction() -> None:
    trees = modules()
    edges = {name: imports(tree, set(trees)) for name, tree in trees.items()}
    for registry in ("losses", "models", "sources", "optimisers"):  # what goes around an entry is imported by its path
        around = {path.partition(":")[0] for path in getattr(kd.registry, registry).groups.values()}
        for name, tree in trees.items():
            uses = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "kd.registry"]
            if any(alias.name == registry for node in uses for alias in node.names):
                edges[name] |= around - {name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for inner in edges[name]:
                visit(inner, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_files_and_functions_are_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in (ROOT / "kd").rglob("*.py"))
    assert lengths[len(lengths) // 2] < 120
    assert lengths[-1] <= 300
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{name}.{node.name}"
