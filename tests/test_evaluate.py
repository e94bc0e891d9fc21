"""kd-evaluate: its numbers against other libraries', its output files, and its errors."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import Complain
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error
from trained import trained

import kd
import kd.cli
from kd.data.batch import Batch
from kd.evaluate import evaluate
from kd.evaluate.loaded_run import batches
from kd.evaluate.measure import Evaluation, measure
from kd.models.weights import save

DISTIL = ("data=digits", "student=cnn", "teacher=resnet8", "epochs=2")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("distilled"), *DISTIL)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be damaged."""
    return shutil.copytree(original, tmp_path / "copy")


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def change(run: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edits the summary as someone would who hands the folder on."""
    summary = summary_of(run)
    edit(summary)
    (run / "summary.json").write_text(json.dumps(summary))


def test_the_scores_are_those_that_the_run_measured(run: Path) -> None:
    result = evaluate(str(run))
    recorded = summary_of(run)["metrics"]["test"]
    assert {"acc", "nll", "ece", "agreement", "kl", "teacher_acc", "teacher_nll"} <= set(recorded)
    for key, value in recorded.items():
        assert result["metrics"][key] == pytest.approx(value, abs=1e-6), key


def test_all_output_files_are_in_one_folder(run: Path) -> None:
    result = evaluate(str(run))
    folder = run / "evaluation/digits-test"
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "reliability.png", "confusion.png"}
    assert json.loads((folder / "evaluation.json").read_text()) == result
    assert (folder / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_are_those_of_scikit_learn_and_torchmetrics(run: Path) -> None:
    result = evaluate(str(run))
    images, labels = kd.data["digits"]().test
    with torch.no_grad():
        p = kd.load(run)(images).double().softmax(-1)
    scores, answers = result["metrics"], p.argmax(-1)
    assert scores["acc"] == pytest.approx(metrics.accuracy_score(labels, answers), abs=1e-6)
    assert scores["nll"] == pytest.approx(metrics.log_loss(labels, p, labels=range(10)), abs=1e-6)
    brier = (p - torch.eye(10)[labels]).square().sum(1).mean()
    assert scores["brier"] == pytest.approx(float(brier), abs=1e-6)
    ece = multiclass_calibration_error(p, labels, 10, n_bins=15, norm="l1")
    assert scores["ece"] == pytest.approx(float(ece), abs=1e-6)
    confusion = metrics.confusion_matrix(labels, answers)
    assert result["confusion"] == confusion.tolist()
    recall = metrics.recall_score(labels, answers, average=None, zero_division=0)
    assert [row["acc"] for row in result["classes"]] == pytest.approx(recall.tolist())


@given(st.integers(2, 40), st.integers(1, 300), st.floats(0.1, 20), st.integers(0, 2**31))
def test_any_answers_are_scored_as_scikit_learn_does(classes: int, count: int, scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(count, classes, generator=draw) * scale, torch.arange(count) % classes
    measured = Evaluation(classes, with_teacher=False)
    for part in torch.arange(count).split(64):
        measured.update(logits[part], labels[part], None)
    scores, p = measured.metrics(), logits.double().softmax(-1).numpy()
    rows = np.arange(count)
    assert scores["nll"] == pytest.approx(-np.log(p[rows, labels]).mean(), rel=1e-6, abs=1e-6)
    if count >= classes:
        expected = metrics.brier_score_loss(labels, p, labels=range(classes), scale_by_half=False)
        assert scores["brier"] == pytest.approx(expected, abs=1e-6)
    if classes > 10:
        top = metrics.top_k_accuracy_score(labels, p, k=5, labels=range(classes))
        assert scores["top5"] == pytest.approx(top, abs=1e-6)
    assert ("top5" in scores) == (classes > 10)
    bins = measured.reliability()
    assert sum(bins["count"]) == count
    full = [row for row in zip(bins["count"], bins["confidence"], bins["accuracy"]) if row[0]]
    from_bins = sum(n * abs(confidence - accuracy) for n, confidence, accuracy in full) / count
    assert scores["ece"] == pytest.approx(from_bins, abs=1e-6)


def test_missing_teacher_is_skipped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, lambda summary: summary["teacher"].update(checkpoint="gone/away"))
    result = evaluate(str(run))
    assert result["teacher"] == {
        "name": "resnet8",
        "measured": False,
        "about": "its weights are no longer at gone/away",
    }
    assert "acc" in result["metrics"]
    assert "agreement" not in result["metrics"]
    assert "teacher resnet8 not evaluated: its weights are no longer at gone/away" in capsys.readouterr().out


def test_moved_teacher_can_be_given_by_its_new_path(run: Path, tmp_path: Path) -> None:
    where = Path(summary_of(run)["teacher"]["checkpoint"]) / "student.safetensors"
    moved = shutil.copy(where, tmp_path / "teacher.safetensors")
    change(run, lambda summary: summary["teacher"].update(checkpoint="gone/away"))
    result = evaluate(str(run), teacher_checkpoint=str(moved))
    assert result["metrics"]["agreement"] == pytest.approx(summary_of(run)["metrics"]["test"]["agreement"], abs=1e-6)
    assert not evaluate(str(run), teacher_checkpoint="none")["teacher"]["measured"]


def test_ensemble_is_evaluated_as_in_training(tmp_path: Path) -> None:
    members = ("+teacher@teacher.members.a=resnet8", "+teacher@teacher.members.b=cnn")
    run = trained(tmp_path, "student=mlp", "teacher=ensemble", *members, "teacher.min_accuracy=0", "epochs=1")
    scores, recorded = evaluate(str(run))["metrics"], summary_of(run)["metrics"]["test"]
    for key in ("agreement", "kl", "teacher_acc"):
        assert scores[key] == pytest.approx(recorded[key], abs=1e-5), key


def test_other_data_and_other_parts(run: Path, tmp_path: Path) -> None:
    counts = {part: evaluate(str(run), part=part)["data"]["images"] for part in ("train", "val")}
    assert counts == {part: summary_of(run)["data"][part] for part in counts}
    assert evaluate(str(run), data={"test_share": 0.5})["data"]["images"] == 899
    other = {"_target_": "kd.data.sources.synthetic", "shape": [1, 8, 8], "test": 70}
    assert evaluate(str(run), data=other, batch_size=32, out=str(tmp_path / "out"))["data"]["images"] == 70
    assert (tmp_path / "out/evaluation.json").is_file()


class Theirs(pl.LightningDataModule):
    classes, shape = 2, (1, 2, 2)

    def setup(self, stage: str) -> None:
        self.stage = stage

    def test_dataloader(self) -> Any:
        assert self.stage == "test"
        return DataLoader(TensorDataset(torch.rand(5, 1, 2, 2), torch.arange(5) % 2), batch_size=2)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        assert not self.trainer.training
        return batch


def test_lightning_data_module_is_set_up_as_lightning_does() -> None:
    assert [len(batch.labels) for batch in batches(Theirs(), "test")] == [2, 2, 1]


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["kd-evaluate", *words])
    kd.cli.evaluate()


def test_no_hydra_files_in_the_working_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    called(monkeypatch, f"run={run}")
    output = capsys.readouterr()
    assert "top-1 accuracy" in output.out
    assert "KL(teacher || student), nats" in output.out
    assert not output.err
    called(monkeypatch, "-m", f"run={run}", "part=test,val")
    assert {path.name for path in (run / "evaluation").iterdir()} == {"digits-test", "digits-val"}
    assert not list(folder.iterdir())


BAD = {
    "run=nowhere": "nowhere is not a finished run: summary.json is missing or damaged",
    "part=tets": "unknown part 'tets'; did you mean 'test'?",
    "data=fashion_mnst": "unknown choice data=fashion_mnst; did you mean data=fashion_mnist?",
    "data=synthetic data.shape=[1,8,8] data.classes=4": "data has 4 classes, but the run's student has 10",
    "data=synthetic": "data has 3 channels, but the run's student expects 1",
    "data.tst_share=0.5": "unknown option 'data.tst_share'; did you mean 'data.test_share'?",
    "batch_size=0": "batch_size=0 must be at least 1",
    "batch_size=few": "batch_size=few: Value 'few'",
    "device=gpu": "unknown device 'gpu'; did you mean 'cpu'?",
    "teacher_checkpoint=nowhere.pth": "teacher_checkpoint=nowhere.pth contains no weights",
    "prt=test": "unknown key prt; did you mean part?",
    "out=/proc/none": "out=/proc/none cannot be created",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gives_a_one_line_error(
    words: str, original: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = words.split() if words.startswith("run=") else [f"run={original}", *words.split()]
    assert BAD[words] in complain(*arguments, command="evaluate")
    assert not list(tmp_path.iterdir())
    assert not (original / "evaluation").exists()


def refusal(run: Path, **options: Any) -> str:
    """The one line that a user would see."""
    with pytest.raises(kd.InputError) as refused:
        evaluate(str(run), **options)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_unfinished_run_gives_a_one_line_error(run: Path) -> None:
    (run / "summary.json").unlink()
    assert "is not a finished run" in refusal(run)


@pytest.mark.parametrize("key", ["student.mean", "data.classes", "data.config", "seed", "teacher.sha256"])
def test_damaged_summary_gives_a_one_line_error(key: str, run: Path) -> None:
    part, _, name = key.partition(".")
    change(run, lambda summary: summary[part].pop(name) if name else summary.pop(part))
    assert f"summary.json is damaged: it has no {key}" in refusal(run)


def test_images_of_unsupported_shape_give_a_one_line_error() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images = [Batch(torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(kd.InputError, match="the run's networks do not accept images of 1x3x3: "):
        measure(student, None, images, 10, torch.device("cpu"))


def test_nonfinite_logits_give_a_one_line_error() -> None:
    measured = Evaluation(3, with_teacher=False)
    with pytest.raises(kd.InputError, match="logits are not finite for 1 of 2 images"):
        measured.update(torch.tensor([[0.0, 1, 2], [0, float("nan"), 1]]), torch.tensor([0, 1]), None)


def test_replaced_teacher_is_refused(run: Path, tmp_path: Path) -> None:
    teacher = Path(summary_of(run)["teacher"]["checkpoint"])
    network = kd.load(teacher)
    with torch.no_grad():
        network.net.fc.bias.add_(1)
    save(network.net, tmp_path / "other.safetensors")
    line = refusal(run, teacher_checkpoint=str(tmp_path / "other.safetensors"))
    assert "is not the run's: its sha256 is" in line


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("TOUCHED").write_text, ("by a pickle",)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_pickle_instead_of_weights_is_not_opened(
    whose: str, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = (run if whose == "student" else tmp_path) / "student.safetensors"
    evil.write_bytes(pickle.dumps(Evil()))
    change(run, lambda summary: whose == "teacher" and summary["teacher"].update(checkpoint=str(evil)))
    assert "not a weights file" in refusal(run)
    assert not Path("TOUCHED").exists()


MARKED = "from pathlib import Path\nPath('TOUCHED').write_text('imported')\n"
PLANTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "student": lambda summary: summary["student"]["config"].update(_target_="planted_code.net"),
    "student by name": lambda summary: summary["student"].update(
        config={"_target_": "kd.models.hub.import_path", "path": "planted_code:net"}
    ),
    "student by interpolation": lambda summary: summary["student"]["config"].update(
        width="${oc.create:{_target_: planted_code.net}}"
    ),
    "data": lambda summary: summary["data"]["config"].update(_target_="planted_code.data"),
}


@pytest.mark.parametrize("target", [*PLANTED, "teacher"])
def test_code_that_a_run_folder_names_is_not_imported(
    target: str, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_code", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    Path("planted_code.py").write_text(MARKED)
    if target == "teacher":
        text = (run / "config.yaml").read_text()
        assert "kd.models.resnet.resnet8" in text
        (run / "config.yaml").write_text(text.replace("kd.models.resnet.resnet8", "planted_code.net"))
    else:
        change(run, PLANTED[target])
    assert "it is not run" in refusal(run)
    assert not Path("TOUCHED").exists()
    if target in ("student", "data"):
        refusal(run, trust=True)
        assert Path("TOUCHED").exists()
