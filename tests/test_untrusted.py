"""Weights, run folders and caches from others are data: they never run code."""

from __future__ import annotations

import ast
import http.server
import json
import pickle
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Complain
from trained import trained

import kd
import kd.cli
from kd.evaluate import evaluate
from kd.export import export
from kd.models.weight_files import read
from kd.report import write as report
from kd.train.resume import config_of

ROOT = Path(__file__).parent.parent
SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=60", "data.test=20"),
    *("data.batch_size=10", "student=cnn", "epochs=1"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a teacher; ``simkd`` makes it a student that answers through its objective."""
    taught = ("teacher=mlp", "teacher.epochs=1", "teacher.min_accuracy=0", "objective=kd")
    return trained(tmp_path_factory.mktemp("finished"), *SMALL, *taught)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "given"))


@pytest.fixture
def touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complain: Complain) -> Path:
    """The file that would be there if anything had run; the working folder is empty, whatever ``complain`` chose."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "TOUCHED"


# ---------------------------------------------------------------- pickles


class Payload:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


FORMATS: dict[str, Callable[[Any, Path], Any]] = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
}


def evil(folder: Path, kind: str, touched: Path) -> Path:
    """A file of weights that holds a payload."""
    path = folder / f"evil-{kind}.pth"
    FORMATS[kind]({"state_dict": {"fc.weight": torch.zeros(1)}, "epoch": Payload(touched)}, path)
    return path


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A local web server over the temporary folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The one line that a user would see."""
    with pytest.raises(kd.InputError) as caught:
        function(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_payload_in_weights_never_runs(
    force: str, kind: str, touched: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    path = evil(run.parent, kind, touched)
    line = complain(*SMALL, "teacher=cnn", f"teacher.checkpoint={path}")
    assert "contains Python objects" in line or "not a weights file" in line
    refused(evaluate, str(run), teacher_checkpoint=str(path))
    for function in (evaluate, export, kd.load, config_of):
        refused(function, str(path))
    assert not touched.exists()


def test_no_command_fetches_a_url(touched: Path, address: str, complain: Complain, run: Path) -> None:
    path = evil(run.parent, "legacy", touched)
    for place in (path.as_uri(), f"{address}/{path.name}"):
        assert "is a URL" in complain(*SMALL, "teacher=cnn", f"teacher.checkpoint={place}")
        assert "is a URL" in complain(*SMALL, "teacher=none", "objective=ce", f"student.checkpoint={place}")
        complain(f"run={run}", f"teacher_checkpoint={place}", command="evaluate")
        for command in ("evaluate", "export"):
            complain(f"run={place}", command=command)
        complain(f"runs={place}", command="report")
        complain(f"resume={place}", "teacher=none", "objective=ce")
    assert not touched.exists()
    assert not list(Path().rglob("summary.json"))


@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize("file", ["student.safetensors", "predictions.safetensors", "summary.json", "config.yaml"])
def test_a_payload_in_a_run_folder_never_runs(
    force: str, file: str, run: Path, touched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    for write in FORMATS.values():
        write({"fc.weight": Payload(touched)}, run / file)
        if file in ("student.safetensors", "summary.json"):
            for function in (evaluate, export, kd.load):
                refused(function, str(run))
        if file == "student.safetensors":
            refused(read, run)
        if file == "config.yaml":
            refused(evaluate, str(run))
            refused(config_of, str(run))
        if file == "summary.json":
            refused(report, run.parent, Path("out"))
        else:
            report(run.parent, Path("out"))
    assert not touched.exists()


@pytest.mark.parametrize("force", ["0", "1"])
def test_a_payload_in_a_checkpoint_never_runs(
    force: str, run: Path, touched: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    (run / "summary.json").unlink()
    for write in FORMATS.values():
        for name in ("last", "previous", "best"):
            write({"state_dict": {}, "callbacks": Payload(touched)}, run / f"checkpoints/{name}.ckpt")
            refused(read, run / f"checkpoints/{name}.ckpt")
        complain(f"resume={run}")
    assert not touched.exists()


def test_a_payload_in_a_cache_never_runs(
    run: Path, touched: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (*SMALL, "teacher=cnn", f"teacher.checkpoint={run}", "teacher.min_accuracy=0", "objective=kd")
    given += ("trainer.enable_progress_bar=false", "logger=none", "teacher.cache=table")
    monkeypatch.setattr(sys, "argv", ["kd-train", *given, "hydra.run.dir=filled"])
    kd.cli.train()
    payload = np.array([Payload(touched)], dtype=object)
    for path in [path for path in Path("table").rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Payload(touched)))
        complain(*given, f"hydra.run.dir=pickle-{path.name}")
        with path.open("wb") as stream:
            np.save(stream, payload, allow_pickle=True)
        complain(*given, f"hydra.run.dir=numpy-{path.name}")
        path.write_bytes(whole)
    assert not touched.exists()


# ---------------------------------------------------------------- names of code


def probes(touched: Path) -> dict[str, dict[str, Any]]:
    """Nodes that would do something: half of them pass Hydra's own list of what it refuses."""
    mark, weights = str(touched), str(touched.with_name("evil.pth"))
    source, array = str(touched.with_name("source")), str(touched.with_name("evil.npy"))
    shell = f"touch {mark}"
    return {
        "os.system": {"command": shell},
        "subprocess.run": {"args": ["touch", mark]},
        "subprocess.Popen": {"args": ["touch", mark]},
        "subprocess.check_output": {"args": ["touch", mark]},
        "builtins.eval": {"_args_": [f"open({mark!r}, 'w')"]},
        "builtins.exec": {"_args_": [f"open({mark!r}, 'w')"]},
        "hydra.utils.call": {"config": {"_target_": "pathlib.Path.touch", "self": mark}},
        "shutil.move": {"src": source, "dst": mark},
        "builtins.open": {"file": mark, "mode": "w"},
        "pathlib.Path.touch": {"_args_": [{"_target_": "pathlib.Path", "_args_": [mark]}]},
        "pathlib.Path.write_text": {"_args_": [{"_target_": "pathlib.Path", "_args_": [mark]}, "text"]},
        "shutil.copy": {"src": source, "dst": mark},
        "torch.load": {"f": weights, "weights_only": False},
        "numpy.load": {"file": array, "allow_pickle": True},
        "torch.hub.load": {"repo_or_dir": str(touched.parent), "model": "net", "source": "local"},
        "torch.utils.collect_env.run": {"command": shell},
        "setuptools._distutils.spawn.spawn": {"cmd": ["touch", mark]},
        "torch.optim.sgd.torch.load": {"f": weights, "weights_only": False},
        "torch.optim.adam.torch.utils.collect_env.run": {"command": shell},
        "planted_for_import.net": {},
    }


PROBES = list(probes(Path("x")))


@pytest.fixture
def armed(touched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that the probes need is there: files to copy and load, and code that may be imported."""
    folder = touched.parent
    (folder / "source").write_text("a file")
    torch.save(Payload(touched), folder / "evil.pth")
    np.save(folder / "evil.npy", np.array([Payload(touched)], dtype=object), allow_pickle=True)
    (folder / "hubconf.py").write_text(f"def net():\n    open({str(touched)!r}, 'w')\n")
    (folder / "planted_for_import.py").write_text(f"open({str(touched)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "planted_for_import", raising=False)
    return touched


def edited(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    change(summary)
    (run / "summary.json").write_text(json.dumps(summary))


def configured(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


Planter = Callable[[Path, dict[str, Any]], None]
ABOUT = {"term": "x", "layer": "", "classes": 4, "width": 4, "size": [1, 1]}
SUMMARY: dict[str, Planter] = {
    "student.config": lambda run, node: edited(run, lambda s: s["student"].update(config=node)),
    "inside student.config": lambda run, node: edited(run, lambda s: s["student"]["config"].update(width=node)),
    "predictor": lambda run, node: edited(run, lambda s: s["student"].update(predictor={**ABOUT, "config": node})),
    "data.config": lambda run, node: edited(run, lambda s: s["data"].update(config=node)),
    "inside data.config": lambda run, node: edited(run, lambda s: s["data"]["config"].update(transform=node)),
}
CONFIG: dict[str, Planter] = {
    "teacher": lambda run, node: configured(run, lambda c: c.update(teacher=node)),
    "inside teacher": lambda run, node: configured(run, lambda c: c["teacher"].update(width=node)),
    "objective": lambda run, node: configured(run, lambda c: c["objective"].update(x=node)),
    "inside objective": lambda run, node: configured(run, lambda c: c["objective"]["kd"].update(T=node)),
    "callbacks": lambda run, node: configured(run, lambda c: c["callbacks"].update(x=node)),
    "logger": lambda run, node: configured(run, lambda c: c["logger"].update(x=node)),
    "trainer": lambda run, node: configured(run, lambda c: c.update(trainer=node)),
    "inside trainer": lambda run, node: configured(run, lambda c: c["trainer"].update(profiler=node)),
    "optim": lambda run, node: configured(run, lambda c: c.update(optim=node)),
    "cache": lambda run, node: configured(run, lambda c: c["cache"].update(root=node)),
}


@pytest.mark.parametrize("target", PROBES)
def test_target_in_a_run_folder_never_runs(target: str, run: Path, armed: Path) -> None:
    node = {"_target_": target, **probes(armed)[target]}
    whole = {name: (run / name).read_text() for name in ("summary.json", "config.yaml")}
    for place, plant in {**SUMMARY, **CONFIG}.items():
        for name, text in whole.items():
            (run / name).write_text(text)
        plant(run, node)
        if place in SUMMARY:
            refused(evaluate, str(run))
            refused(export, str(run), "safetensors")
            if "data" not in place:
                refused(kd.load, run)
        else:
            refused(config_of, str(run))
            if "teacher" in place:
                refused(evaluate, str(run))
        assert not armed.exists(), place
    assert not (run / "evaluation").exists()
    assert not (run / "export").exists()
    assert "planted_for_import" not in sys.modules


@pytest.mark.parametrize("target", ["torch.optim.sgd.torch.load", "torch.utils.collect_env.run", "pathlib.Path.touch"])
def test_commands_refuse_a_target_with_a_one_line_error(
    target: str, run: Path, armed: Path, complain: Complain
) -> None:
    node = {"_target_": target, **probes(armed)[target]}
    SUMMARY["student.config"](run, node)
    CONFIG["callbacks"](run, node)
    for command in ("evaluate", "export"):
        line = complain(f"run={run}", command=command)
        assert f"names {target!r}, which is not registered with kd; it is not run" in line
    assert "it is not run" in complain(*SMALL, "teacher=none", "objective=ce", f"resume={run}")
    line = complain("teacher=cnn", f"teacher.checkpoint={run}")  # its weights are read, and nothing else of it
    assert "does not fit CNN" in line
    assert not armed.exists()


# ---------------------------------------------------------------- the code itself


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> Any:
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


SOURCES = sorted([*(ROOT / "kd").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
FORBIDDEN = (
    r"(torch\.)?hub\.load(_state_dict_from_url)?|pickle\.loads?|(c|cloud)pickle\..*|joblib\.load|dill\..*|shelve\..*|"
    r"marshal\.loads?|yaml\.(load|unsafe_load|full_load)(_all)?|eval|exec|os\.system|"
    r".*\.load_from_checkpoint|torch\.distributed\.checkpoint\.load"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loader_can_run_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for name, call in calls(tree):
        assert not re.fullmatch(FORBIDDEN, name), f"{path}:{call.lineno}: {name}"
        if name == "torch.load":
            assert given(call, "weights_only") is True, f"{path}:{call.lineno}"
        if name in ("np.load", "numpy.load"):
            assert given(call, "allow_pickle") is False, f"{path}:{call.lineno}"
        if name.endswith(("trainer.fit", "trainer.test", "trainer.validate")) and given_word(call, "ckpt_path"):
            assert given(call, "weights_only") is True, f"{path}:{call.lineno}"
        if name.endswith((".log", ".log_dict")):
            assert not given_word(call, "sync_dist"), f"{path}:{call.lineno}: a mean over processes counts some twice"
        if name.endswith("Unpickler"):
            assert name == "_PlainUnpickler", f"{path}:{call.lineno}"


def given_word(call: ast.Call, name: str) -> bool:
    return any(word.arg == name for word in call.keywords)


def test_tensorboard_listens_to_this_machine_only() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.yaml"), *SOURCES]
    told = 0
    for path in documents:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(r"--bind_all|--host[= ]+(0\.0\.0\.0|::)", line), f"{path}:{number}"
            told += "tensorboard" in line and "localhost" in line
    assert told
