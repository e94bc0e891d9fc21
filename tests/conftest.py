"""Shared options and fixtures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
import yaml
from command_runs import launched
from fork import kd_train_in
from hypothesis import settings
from torch import nn

# the same examples every time; --hypothesis-profile=thorough draws new ones
settings.register_profile("default", deadline=None, max_examples=25, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=400, derandomize=False)
settings.load_profile("default")

HERE = Path(__file__).parent
SHA256: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow")
    parser.addoption("--network", action="store_true", help="run the tests marked network")
    parser.addoption("--golden", default=str(HERE / "golden"), help="a folder of golden cases with its index.json")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    absent = {
        "slow": None if config.getoption("--slow") else "slow: give --slow",
        "network": None if config.getoption("--network") else "needs the internet: give --network",
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
    }
    for item in items:
        for mark, reason in absent.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kd_train(tmp_path: Path) -> Run:
    """Runs ``kd-train`` with the given overrides in an empty folder, as a user's shell would."""

    def run(
        *overrides: str, cwd: Path = tmp_path, fresh: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return kd_train_in(cwd, overrides, {"COLUMNS": "120", **environment}, fresh=fresh)

    return run


@pytest.fixture(autouse=True)
def unload_temporary_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Unloads code that a test imported from a temporary folder, so that the next test may use its names."""
    modules, paths = set(sys.modules), list(sys.path)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]
    sys.path[:] = paths


Complain = Callable[..., str]


@pytest.fixture
def complain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Complain:
    """Runs a command (``kd-train``) that fails, in this process and an empty folder; its one line on stderr."""
    import kd.cli

    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, command: str = "train", code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", [f"kd-{command}", *overrides])
        for name in ("HYDRA_FULL_ERROR", "KD_FULL_ERROR"):
            monkeypatch.setenv(name, "0")
        with pytest.raises(SystemExit) as stop:
            getattr(kd.cli, command)()
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        assert stop.value.code == code, lines
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.fixture
def hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers of the tests that ask for this do not change: the sha256 of each is computed once, as it takes long."""
    from kd.distill.teacher import Frozen
    from kd.models.weights import fingerprint

    def once(network: nn.Module) -> str:
        if network not in SHA256:
            SHA256[network] = fingerprint(network)
        return SHA256[network]

    monkeypatch.setattr(sys.modules[Frozen.__module__], "fingerprint", once)


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped in its second epoch, ``run``, and a finished one, ``done``."""
    folder = tmp_path_factory.mktemp("stopped")
    strike = ["+callbacks.saboteur._target_=saboteur.Saboteur", "+callbacks.saboteur.moment=step"]
    strike += ["+callbacks.saboteur.epoch=1", "+callbacks.saboteur.batch=2", "+callbacks.saboteur.signum=15"]
    struck = launched(folder, *strike, "+callbacks.saboteur.mark=mark", "hydra.run.dir=run")
    assert struck.returncode == 143, struck.stderr
    config = yaml.safe_load((folder / "run/config.yaml").read_text())
    del config["callbacks"]["saboteur"]
    (folder / "run/config.yaml").write_text(yaml.safe_dump(config))
    done = launched(folder, "hydra.run.dir=done")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to spoil, as the working directory."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
