"""Sources of a teacher's network and weights: user code, ready or trained first, and run folders."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import Complain
from safetensors.torch import load_file, save_file
from small_runs import trained

import kd
from kd import Batch, Data, Frozen, InputError, Memory, Normalized
from kd.distill.cached import Cached, CacheOptions, cached
from kd.distill.identity import answers_key, files_of, network_key, teacher_key
from kd.distill.source import code_of
from kd.distill.spec import MemberSpec
from kd.evaluate import evaluate
from kd.run_folder.from_run import check_network, network_of
from kd.train.teacher_recipe import has_weights, recipe_of, start_of

SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=200", "data.test=40"),
    *("data.batch_size=16", "student=cnn", "epochs=2", "teacher.min_accuracy=0"),
)
PLAIN = (*SMALL, "trainer.enable_progress_bar=false", "logger=none", "callbacks.pictures=null")
CODE = """
import torch
from torch import nn
from helper import WIDTH

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
    def forward(self, x):
        return self.layers(x) * 1.0

def fresh(classes):
    return Net(classes)

def done(classes):
    torch.manual_seed(7)
    return Net(classes).eval()

def many():
    return Net(9).eval()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of the user's own, ``mine``, and one that it imports."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("WIDTH = 16\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mine", "helper"):
        sys.modules.pop(name, None)


def forgotten() -> None:
    """As in a new process."""
    for name in ("mine", "helper"):
        sys.modules.pop(name, None)


IMPORT = {"_target_": "kd.models.hub.import_path", "path": "mine:fresh"}
EDITS: dict[str, tuple[str, Callable[[str], str], bool]] = {
    "its body": ("mine.py", lambda text: text.replace("* 1.0", "* 2.0"), True),
    "a module that it imports": ("helper.py", lambda text: text.replace("16", "32"), True),
    "a comment": ("mine.py", lambda text: f"# a comment\n{text}", False),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("node", [IMPORT, {"_target_": "mine.Net"}], ids=["import", "target"])
def test_edited_network_code_changes_its_identity(mine: Path, edit: str, node: dict[str, Any]) -> None:
    file, change, differs = EDITS[edit]
    before = network_key(node), answers_key(node)
    (mine / file).write_text(change((mine / file).read_text()))
    forgotten()
    assert ((network_key(node), answers_key(node)) != before) == differs


def test_teacher_with_edited_code_is_retrained(mine: Path) -> None:
    words = (*PLAIN, "teacher=import", "teacher.path=mine:fresh", "objective=kd")
    first = trained(mine / "a", *words)
    shutil.copytree(mine / "a/teachers", mine / "b/teachers")
    (mine / "mine.py").write_text(CODE.replace("* 1.0", "* 3.0"))
    forgotten()
    second = trained(mine / "b", *words)
    teachers = [json.loads((run / "summary.json").read_text())["teacher"] for run in (first, second)]
    assert teachers[0]["sha256"] != teachers[1]["sha256"]
    assert len(list((mine / "b/teachers").iterdir())) == 2


def test_library_code_is_identified_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import kd.distill.source

    for name in ("torchvision", "timm"):
        node = {"_target_": kd.registry.target_of(kd.models[name]), "name": "resnet18"}
        known = code_of(node)
        assert known == {name: known[name]}
        monkeypatch.setattr(kd.distill.source, "version", lambda _: "99.0")
        assert code_of(node) == {name: "99.0"}
        monkeypatch.undo()
    assert code_of({"_target_": "kd.models.small.CNN", "width": 4}) == {}
    assert code_of({"_target_": "torch.optim.SGD"}) == {}


def test_file_argument_is_identified_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    keys = []
    for content in ("one", "two", "one"):
        path.write_text(content)
        keys.append(network_key({"_target_": "kd.models.small.CNN", "options": {"file": str(path)}}))
    assert keys[0] == keys[2] != keys[1]
    moved = Path(shutil.copy(path, tmp_path / "moved.pth"))
    assert network_key({"_target_": "kd.models.small.CNN", "options": {"file": str(moved)}}) == keys[0]


def test_weights_that_a_function_reads_by_itself_are_part_of_the_teacher(mine: Path) -> None:
    (mine / "mine.py").write_text(
        CODE + "\ndef tuned(classes):\n    n = Net(classes)\n"
        "    n.load_state_dict(torch.load('hidden.pth', weights_only=True))\n    return n\n"
    )
    node = {"_target_": "kd.models.hub.import_path", "path": "mine:tuned"}
    data = SimpleNamespace(classes=4, shape=(1, 8, 8), describe=lambda: {"sha256": "x"})
    config = {"teacher": node, "optim": {}, "trainer": {}, "callbacks": {}, "epochs": 1, "data": {}, "seed": 0}
    import mine as module

    keys = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        torch.save(module.Net(4).state_dict(), "hidden.pth")
        recipe = recipe_of(config)
        keys.append(teacher_key(recipe, data, start_of(recipe, data)))
    assert keys[0] == keys[2] != keys[1]
    assert start_of({**recipe_of(config), "student": {"_target_": "kd.models.small.CNN"}}, data) is None


# ---------------------------------------------------------------- as it is


def sha256_of(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["teacher"]["sha256"])


def as_returned(name: str) -> str:
    import mine

    return Frozen(getattr(mine, name)(4)).fingerprint()


def test_network_in_eval_mode_is_used_without_training(mine: Path) -> None:
    run = trained(mine, *PLAIN, "teacher=import", "teacher.path=mine:done")
    assert sha256_of(run) == as_returned("done")
    assert not (mine / "teachers").exists()
    assert json.loads((run / "summary.json").read_text())["teacher"]["accuracy"] is not None  # by the gate
    assert evaluate(str(run), trust=True)["teacher"]["measured"]


@pytest.mark.parametrize("word", ["teacher.epochs=0", "teacher.train=false"])
def test_teacher_is_used_untrained_on_request(mine: Path, word: str) -> None:
    trained(mine, *PLAIN, "teacher=import", "teacher.path=mine:fresh", word)
    assert not (mine / "teachers").exists()


def test_network_in_training_mode_is_trained_first(mine: Path) -> None:
    run = trained(mine / "a", *PLAIN, "teacher=import", "teacher.path=mine:fresh")
    assert len(list((mine / "a/teachers").iterdir())) == 1
    run = trained(mine / "b", *PLAIN, "teacher=import", "teacher.path=mine:done", "teacher.train=true")
    assert len(list((mine / "b/teachers").iterdir())) == 1
    assert sha256_of(run) != as_returned("done")


def test_columns_of_a_ready_teacher_with_more_classes_can_be_selected(mine: Path) -> None:
    words = ("teacher=import", "teacher.path=mine:many", "teacher.outputs=9", "teacher.classes=[8,2,0,5]")
    run = trained(mine, *PLAIN, *words)
    assert json.loads((run / "summary.json").read_text())["teacher"]["classes"] == [8, 2, 0, 5]


def test_untrained_ready_teacher_fails_the_accuracy_gate(complain: Complain) -> None:
    words = [word for word in PLAIN if not word.startswith("teacher.")]
    assert "has a validation accuracy of" in complain(*words, "teacher=cnn", "teacher.epochs=0")


REFUSED = {
    ("teacher.outputs=1000", "teacher.classes=[0,1,2,3]"): "teacher.classes is for a teacher with other classes",
    ("teacher.epochs=-1",): "teacher.epochs=-1 must be a whole number of at least 0",
    ("teacher.epochs=0", "teacher.train=true"): "teacher.train=true and teacher.epochs=0 exclude each other",
    ("teacher.train=true", "teacher.checkpoint=x.pth"): "teacher.train=true and teacher.checkpoint exclude each other",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_invalid_teachers_are_refused_before_any_training(words: tuple[str, ...], complain: Complain) -> None:
    assert REFUSED[words] in complain(*PLAIN, "teacher=cnn", *words)
    assert not Path("runs/teachers").exists()
    assert not list(Path().rglob("*.ckpt"))


def test_invalid_ensemble_member_is_refused_before_any_training(complain: Complain) -> None:
    line = complain(*PLAIN, "teacher=[cnn,mlp]", "teacher.members.mlp.epochs=-1")
    assert "teacher.members.mlp.epochs=-1" in line
    assert not Path("runs/teachers").exists()


def test_zoo_and_library_networks_are_pretrained_only_on_request() -> None:
    data = SimpleNamespace(classes=4, shape=(3, 8, 8))
    cnn = {"_target_": "kd.models.small.CNN"}
    assert not has_weights(MemberSpec("", "teacher", cnn), data)
    assert has_weights(MemberSpec("", "teacher", {**cnn, "checkpoint": "x"}), data)
    pretrained = {"_target_": "kd.models.hub.timm", "name": "resnet18", "pretrained": True}
    assert has_weights(MemberSpec("", "teacher", pretrained), data)
    assert not has_weights(MemberSpec("", "teacher", {**pretrained, "train": True}), data)


# ---------------------------------------------------------------- a run folder as teacher


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network whose options are not its defaults."""
    words = (*PLAIN, "student=vit_tiny", "student.heads=2", "teacher=none", "objective=ce", "data.pad=1")
    return trained(tmp_path_factory.mktemp("source"), *[word for word in words if "min_acc" not in word])


@pytest.mark.parametrize("key", ["teacher", "teacher.checkpoint"])
def test_a_run_folder_as_teacher_brings_its_network(
    source: Path, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my run's").symlink_to(source)
    quoted = "'my run\\'s'"
    monkeypatch.setattr(sys, "argv", ["kd-train", *PLAIN, f"{key}={quoted}", "hydra.run.dir=out"])
    kd.cli.train()
    teacher = json.loads((tmp_path / "out/summary.json").read_text())["teacher"]
    student = json.loads((source / "summary.json").read_text())["student"]
    assert teacher["sha256"] == student["sha256"]
    assert teacher["config"]["heads"] == 2
    assert not (tmp_path / "runs/teachers").exists()


def test_another_network_than_the_run_folders_is_refused_by_name(source: Path, complain: Complain) -> None:
    line = complain(*PLAIN, "teacher=cnn", f"teacher.checkpoint={source}")
    assert f"teacher=cnn, but {source} contains vit_tiny; set teacher={source} to use that network" in line
    line = complain(*PLAIN, "teacher=vit_tiny", "teacher.heads=4", f"teacher.checkpoint={source}")
    assert f"teacher.heads=4, but {source} contains vit_tiny with heads=2" in line
    line = complain(*PLAIN, "teacher=[cnn,mlp]", f"teacher.members.cnn.checkpoint={source}")
    assert f"teacher.members.cnn is cnn, but {source} contains vit_tiny" in line
    assert "teacher.heads=4" in complain(*PLAIN, f"teacher={source}", "teacher.heads=4")


def test_missing_run_folder_is_reported(complain: Complain) -> None:
    assert "teacher=./nowhere is neither a network nor a run folder" in complain(*PLAIN, "teacher=./nowhere")
    Path("empty").mkdir()
    assert "empty is not a finished run" in complain(*PLAIN, "teacher=empty")


def test_a_run_folder_as_teacher_runs_nothing_that_is_not_registered(source: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(source, tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    for node in (
        {"_target_": "os.system", "command": "touch x"},
        IMPORT,
        {"_target_": "kd.models.small.CNN", "w": "${x}"},
    ):
        summary["student"]["config"] = node
        (run / "summary.json").write_text(json.dumps(summary))
        with pytest.raises(InputError, match="not run"):
            network_of(str(run))
    summary["student"]["config"] = IMPORT
    (run / "summary.json").write_text(json.dumps(summary))
    assert network_of(str(run), trust=True) == IMPORT


def test_a_run_folders_network_fetches_nothing(source: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(source, tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    timm = {"_target_": "kd.models.hub.timm", "name": "resnet18", "pretrained": True}
    summary["student"]["config"] = timm
    (run / "summary.json").write_text(json.dumps(summary))
    assert network_of(str(run)) == {**timm, "pretrained": False}
    check_network({**timm, "pretrained": False, "checkpoint": str(run)}, "teacher")


def test_weights_replaced_under_the_same_path_are_detected(source: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(source, tmp_path / "run"))
    config = {"teacher": {"checkpoint": str(run)}, "student": {"checkpoint": None}}
    before = files_of(config)
    assert set(before) == {"teacher.checkpoint"}
    state = load_file(run / "student.safetensors")
    save_file({key: value + 1 for key, value in state.items()}, run / "student.safetensors")
    assert files_of(config) != before


def test_edited_run_description_is_refused(source: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(source, tmp_path / "run"))
    whole = json.loads((run / "summary.json").read_text())
    for key, value in (("config", {**whole["student"]["config"], "heads": 4}), ("mean", [0.1]), ("size", 16)):
        summary = {**whole, "student": {**whole["student"], key: value}}
        (run / "summary.json").write_text(json.dumps(summary))
        for read in (kd.load, lambda run: evaluate(str(run))):
            with pytest.raises(InputError, match=rf"was edited: it has student\.{key}="):
                read(run)


def test_an_edited_teacher_of_a_run_is_not_measured(source: Path, tmp_path: Path) -> None:
    words = ("teacher=vit_tiny", "teacher.heads=2", f"teacher.checkpoint={source}")
    run = trained(tmp_path, *PLAIN, *words)
    evaluate(str(run))
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in (("heads", 4), ("classes", [3, 2, 1, 0])):
        edited = {**config, "teacher": {**config["teacher"], key: value}}
        (run / "config.yaml").write_text(yaml.safe_dump(edited))
        with pytest.raises(InputError, match=f"was edited: its teacher has {key}="):
            evaluate(str(run))


# ---------------------------------------------------------------- the teacher's own course


STOP, SWA = (f"pytorch_lightning.callbacks.{name}" for name in ("EarlyStopping", "StochasticWeightAveraging"))
CUTS = {
    "early stopping": f"+callbacks.stop={{_target_: {STOP}, monitor: val/acc, patience: 1}}",
    "weight averaging": f"+callbacks.swa={{_target_: {SWA}, swa_lrs: 0.01}}",
    "max_steps": "+trainer.max_steps=3",
    "overfit_batches": "+trainer.overfit_batches=2",
    "limit_train_batches": "trainer.limit_train_batches=2",
    "no best": "callbacks.best=null",
}


def test_limits_on_student_training_do_not_apply_to_its_teacher(tmp_path: Path) -> None:
    words = (*PLAIN, "teacher=mlp", "teacher.epochs=4", "epochs=1")
    whole = trained(tmp_path, *words)
    known = sha256_of(whole)
    for name, word in CUTS.items():
        run = trained(tmp_path / name, *words, word)
        (teacher,) = (tmp_path / name / "teachers").iterdir()
        assert json.loads((teacher / "summary.json").read_text())["training"]["steps"] == 4 * (180 // 16), name
        assert sha256_of(run) == known, name
        assert teacher.name == next((tmp_path / "teachers").iterdir()).name


def test_training_options_of_the_teacher_can_be_set(tmp_path: Path) -> None:
    trained(tmp_path, *PLAIN, "teacher=mlp", "teacher.epochs=4", "teacher.trainer={limit_train_batches: 2}")
    (teacher,) = (tmp_path / "teachers").iterdir()
    assert json.loads((teacher / "summary.json").read_text())["training"]["steps"] == 8


def test_a_stopped_training_of_a_teacher_is_resumed_by_a_run_with_another_temperature(tmp_path: Path) -> None:
    words = (*PLAIN, "teacher=mlp", "teacher.epochs=3", "data.pad=1")
    trained(tmp_path, *words)
    (teacher,) = (tmp_path / "teachers").iterdir()
    before = load_file(teacher / "student.safetensors")
    (teacher / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run")
    run = trained(tmp_path, *words, "T=2", "alpha=0.5", "speed.compile=false", "cache.topk=2", "seed=3")
    assert (teacher / "summary.json").is_file()
    assert json.loads((run / "summary.json").read_text())["objective"]["T"] == 2
    assert all(torch.equal(value, before[key]) for key, value in load_file(teacher / "student.safetensors").items())


# ---------------------------------------------------------------- tables of answers


def table(folder: Path, network: torch.nn.Module, known: Any = None) -> tuple[Frozen, Data, Frozen | Cached]:
    arrays = kd.data["synthetic"](shape=[1, 8, 8], classes=4, train=40, test=8)
    data = Data(Memory(arrays, batch_size=8, pad=4, flip=True))
    frozen = Frozen(Normalized(network, data.mean, data.std))
    return frozen, data, cached(frozen, data, "auto", CacheOptions(root=str(folder)), "net", "32-true", known)


def batches(data: Data, epoch: int) -> list[Batch]:
    return [data.memory.augment(batch, 0, epoch) for batch in data.memory.loader("train", 0, lambda: epoch)]


@pytest.mark.parametrize("from_node", [True, False])
def test_the_same_weights_in_a_network_with_other_options_have_a_table_of_their_own(
    tmp_path: Path, from_node: bool
) -> None:
    folders = []
    state: dict[str, Any] = {}
    for heads in (2, 4):
        network = kd.models["vit_tiny"](classes=4, shape=[1, 8, 8], heads=heads)
        network.load_state_dict(state or network.state_dict())
        state = network.state_dict()
        node = {"_target_": kd.registry.target_of(kd.models["vit_tiny"]), "heads": heads, "cache": "auto"}
        _, _, teacher = table(tmp_path, network, answers_key(node) if from_node else None)
        assert isinstance(teacher, Cached)
        folders.append(teacher.table.folder)
    assert folders[0] != folders[1]
    again = table(tmp_path, network, answers_key(node) if from_node else None)[2]
    assert isinstance(again, Cached)
    assert again.table.folder == folders[1]


def test_wrong_rows_of_partly_cached_batches_are_detected_in_every_epoch(tmp_path: Path) -> None:
    _, data, teacher = table(tmp_path, kd.models["cnn"](classes=4, channels=1))
    assert isinstance(teacher, Cached)
    for epoch in range(12):
        for batch in batches(data, epoch):
            teacher(batch)
        teacher.on_epoch_end()
    later = batches(data, 12)
    met = [teacher.table.met[batch.index * teacher.table.views + batch.view] for batch in later]  # type: ignore
    assert any(known.any() for known in met)
    assert not any(known.all() for known in met)  # of 162 views, as a rule some are new
    teacher.table.parts["values"].add_(1.0)
    with pytest.raises(InputError, match="does not contain this teacher's logits"):
        all(teacher(batch) for batch in later)


def test_check_of_partly_cached_batches_does_not_change_the_table(tmp_path: Path) -> None:
    states = []
    for name, checked in (("a", True), ("b", False)):
        torch.manual_seed(0)
        _, data, teacher = table(tmp_path / name, kd.models["cnn"](classes=4, channels=1))
        assert isinstance(teacher, Cached)
        for epoch in range(4):
            for batch in batches(data, epoch):
                teacher._unchecked = 8 if checked else 0
                teacher(batch)
        states.append(teacher.table.parts["values"].clone())
    assert torch.equal(*states)


def test_finished_float64_run_reloads_and_its_table_is_exact(tmp_path: Path) -> None:
    words = (*PLAIN, "teacher=resnet8", "trainer.precision=64-true", "data.pad=1")
    run = trained(tmp_path, *words)
    summary = json.loads((run / "summary.json").read_text())
    assert kd.load(run)(torch.zeros(2, 1, 8, 8)).dtype == torch.float64
    measured = evaluate(str(run))
    assert measured["teacher"]["measured"]
    assert measured["metrics"]["kl"] == pytest.approx(summary["metrics"]["test"]["kl"], rel=1e-6)
    (key,) = (tmp_path / "cache").glob("*/key.json")
    assert json.loads(key.read_text())["dtype"] == "float64"


def test_rows_are_in_float64_where_the_network_is_whether_looked_up_or_fresh(tmp_path: Path) -> None:
    arrays = kd.data["synthetic"](shape=[1, 8, 8], classes=4, train=40, test=8)
    data = Data(Memory(arrays, batch_size=8, pad=1))
    frozen = Frozen(Normalized(kd.models["cnn"](classes=4, channels=1), data.mean, data.std).double())
    teacher = cached(frozen, data, "auto", CacheOptions(root=str(tmp_path)), "net", "64-true")
    for _ in range(2):
        batch = batches(data, 0)[0]
        answer = teacher(batch)[""]
        assert answer.dtype == torch.float64
        assert torch.equal(answer, frozen(batch)[""])
