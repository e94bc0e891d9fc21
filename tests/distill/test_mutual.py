"""Mutual learning and the mean teacher: steps by hand, training without labels, errors, and exact resume."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Complain, Run
from small_runs import trained
from test_dot import Keep, Net, data, fit, same
from test_resume import QUIET, as_if_nothing_happened, interrupted, whole
from torch import Tensor

import kd
from kd import Objective, Optim, Term
from kd.distill.mean_teacher import MeanTeacher, MeanTeacherDistiller
from kd.distill.mutual import MutualDistiller, Peers, nodes_of
from kd.losses import CE, KL
from kd.report import write

LR = 0.1
SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=160", "data.test=60", "epochs=2"),
    *("data.batch_size=16", "data.pad=1", "data.flip=true", "student=cnn"),
)
REGIMES = {
    "mutual": ("teacher=peers", "teacher.peers=[resnet8,cnn]", "objective=dml"),
    "ema": ("teacher=ema", "teacher.decay=0.9"),
    "ressl": ("teacher=momentum", "objective=ressl", "objective.ressl.size=64", "data.erase=0.5", "callbacks=ema"),
}


def plain() -> Optim:
    return Optim(lambda p: torch.optim.SGD(p, lr=LR), schedule="constant", warmup=0)


def dml() -> Objective:
    return Objective({"ce": Term(CE()), "kd": Term(KL(T=1))})


def test_three_steps_of_three_students_are_those_of_a_hand_computation() -> None:
    peers = {"one": Net(2), "two": Net(3)}
    module = MutualDistiller(Net(1), Peers(peers), dml(), plain(), (1, 4, 4), 3, config={"seed": 0}).double()
    students = [copy.deepcopy(net) for net in (module.student, *peers.values())]
    for batch, _ in zip(data().train_dataloader(), range(3)):
        logits = [net(batch.images) for net in students]
        gradients = []
        for own, z in zip(students, logits):
            others = [other.detach().softmax(-1) for other in logits if other is not z]
            kl = sum((p * (p.log() - z.log_softmax(-1))).sum(-1).mean() for p in others) / 2
            loss = F.cross_entropy(z, batch.labels) + kl
            gradients.append(torch.autograd.grad(loss, [*own.parameters()]))
        for own, found in zip(students, gradients):
            for p, g in zip(own.parameters(), found):
                p.data -= LR * g
    fit(module, 3, precision="64-true")
    for net, own in zip((module.student, *peers.values()), students):
        same(net, dict(own.named_parameters()), rtol=1e-10, atol=1e-12)


def test_the_mean_teacher_follows_by_its_schedule() -> None:
    student = Net(1)
    module = MeanTeacherDistiller(
        student, MeanTeacher(student, 0.6), dml(), plain(), (1, 4, 4), 3, config={"seed": 0}
    ).double()
    own, mean = copy.deepcopy(student), copy.deepcopy(student)
    for step, (batch, _) in enumerate(zip(data().train_dataloader(), range(3)), 1):
        z, p = own(batch.images), mean(batch.images).detach().softmax(-1)
        kl = (p * (p.log() - z.log_softmax(-1))).sum(-1).mean()
        found = torch.autograd.grad(F.cross_entropy(z, batch.labels) + kl, [*own.parameters()])
        decay = {1: 1 / 2, 2: 0.6, 3: 0.6}[step]
        for p, q, g in zip(own.parameters(), mean.parameters(), found):
            p.data -= LR * g
            q.data = decay * q.data + (1 - decay) * p.data
    fit(module, 3, precision="64-true")
    same(module.student, dict(own.named_parameters()), rtol=1e-10, atol=1e-12)
    same(module.teacher.network, dict(mean.named_parameters()), rtol=1e-10, atol=1e-12)


def test_the_mean_teacher_follows_once_for_accumulated_batches() -> None:
    student = Net(1)
    module = MeanTeacherDistiller(student, MeanTeacher(student, 0.0), dml(), plain(), (1, 4, 4), 3, config={"seed": 0})
    seen: list[Tensor] = []
    module.teacher.register_forward_hook(lambda net, *_: seen.append(net.network.fc.weight.clone()))
    fit(module, 2, accumulate_grad_batches=2)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("name", ["mutual", "ema"])
def test_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    def made() -> MutualDistiller | MeanTeacherDistiller:
        student = Net(1)
        rest = (dml(), plain(), (1, 4, 4), 3, 4.0, {"seed": 0})
        if name == "mutual":
            return MutualDistiller(student, Peers({"one": Net(2)}), *rest)
        return MeanTeacherDistiller(student, MeanTeacher(student), *rest)

    straight, second = made(), made()
    fit(straight, 7, callbacks=[Keep(5, tmp_path / "last.ckpt")])
    fit(second, 7, ckpt_path=tmp_path / "last.ckpt")
    assert straight.state_dict().keys() == second.state_dict().keys()
    for key, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, words in REGIMES.items():
        trained(folder / name, *SMALL, *words)
    return folder


def test_runs_report_their_measures(runs: Path) -> None:
    told = {name: json.loads((runs / name / "run" / "summary.json").read_text()) for name in REGIMES}
    assert {"val/acc", "val/peer_resnet8/acc", "val/peer_cnn/acc", "teacher/acc"} <= set(
        told["mutual"]["metrics"]["best"]
    )
    assert told["mutual"]["teacher"]["name"] == "resnet8+cnn"
    assert told["ema"]["teacher"]["name"] == "ema"
    best = told["ressl"]["metrics"]["best"]
    assert best["val/acc"] == best["val/knn"]
    assert told["ressl"]["teacher"] is None


@pytest.mark.parametrize("name", REGIMES)
def test_saved_student_is_an_ordinary_student(name: str, runs: Path) -> None:
    student = kd.load(runs / name / "run")
    assert student(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert not any("teacher" in key or "head" in key for key in student.state_dict())


def test_they_are_exported_measured_and_reported(runs: Path) -> None:
    from kd.evaluate import evaluate
    from kd.export import export

    assert export(str(runs / "ressl" / "run"), "torch_export")["check"]["largest_difference"] < 1e-4
    result = evaluate(str(runs / "ema" / "run"))
    assert not result["teacher"]["measured"]
    table = write(runs, runs).markdown()
    for label in ("| teacher ema", "| teacher resnet8+cnn", "kd ema |", "kd resnet8+cnn |"):
        assert label in table, table


def test_the_mean_teacher_learns_from_images_without_labels(tmp_path: Path) -> None:
    few = ("data.per_class=5", "data.unlabelled=true")
    folder = trained(tmp_path, *SMALL, "teacher=ema", *few, "objective.kd.warmup=2")
    assert json.loads((folder / "summary.json").read_text())["data"]["labelled"] == 20


def test_training_without_any_labels(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher", *SMALL, "student=resnet8", "teacher=none", "objective=ce")
    words = ("teacher=resnet8", f"teacher.checkpoint={teacher}", "teacher.min_accuracy=0", "objective=kd", "alpha=1")
    best = "callbacks.best.monitor=val/agreement"  # nor do they choose the epoch
    folder = trained(
        tmp_path / "student", *SMALL, *words, "data.per_class=1", "data.unlabelled=true", "~objective.ce", best
    )
    told = json.loads((folder / "summary.json").read_text())
    assert told["objective"]["terms"][0] == "total = 1 * kd"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["teacher=peers", "teacher.peers=[resnte8]"], "did you mean 'resnet8'"),
        (["teacher=peers", "teacher.peers=[]"], "peers must name at least one network"),
        (["teacher=peers", "objective=ce"], "try objective=dml"),
        (
            ["teacher=peers", "objective=at", "objective.at.student=[stage1]", "objective.at.teacher=[stage1]"],
            "outputs only, but a term uses layer",
        ),
        (["teacher=ema", "teacher.decay=1"], "teacher: decay must lie in [0, 1), got 1"),
        (["teacher=ema", "optim=dot"], "a frozen teacher, not teacher=ema"),
        (["teacher=momentum"], "objective.ce: teacher=momentum compares the projections"),
        (["teacher=momentum", "objective=ressl", "teacher.dim=0"], "teacher: dim must be at least 1, got 0"),
        (["teacher=ema", "objective=srrl"], "objective.srrl copies layers of the teacher before the first step"),
        (["teacher=momentum", "objective=ressl", "data.mixup=0.2"], "without data.mixup"),
        (["teacher=momentum", "objective=ressl", "data.repeats=2"], "or data.repeats"),
        (["teacher=momentum", "objective=ressl", "+teacher.shuffle=true"], "shuffle"),
        (["teacher=peers", "objective=dml", "+teacher.shuffle=true"], "shuffle"),
        (["teacher=peers", "objective=dml", "teacher.peers=[{width: 8}]"], "nodes with _target_, got {'width': 8}"),
        (["teacher=resnet8", "optim=dot", "trainer.gradient_clip_val=1"], "set trainer.gradient_clip_val=null"),
        (["teacher=resnet8", "optim=dot", "speed.compile=true"], "speed.compile=teacher"),
        (
            ["teacher=none", "objective=ce", "data.scale=0.5"],
            "scale must be two fractions 0 < minimum <= maximum <= 1, got 0.5",
        ),
        (["teacher=none", "objective=ce", "data.scale=[a,b]"], "scale must be two fractions"),
        (["teacher=momentum", "objective=ressl", "objective.ressl.size=8"], "B at most 8"),
        (["teacher=momentum", "objective=ressl", "callbacks.best.monitor=val/agreement"], "unknown metric"),
        (
            ["teacher=peers", "objective=dml", "callbacks.best.monitor=val/peer_mlp/acc"],
            "did you mean 'val/peer_cnn/acc'",
        ),
    ],
)
def test_invalid_options_give_a_one_line_error(
    words: list[str], said: str, complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in complain(*SMALL, "trainer.enable_progress_bar=false", "logger=none", *words)
    assert not (tmp_path / "runs/teachers").exists()  # it is said before a teacher is trained


def test_peers_of_equal_name_get_distinct_names() -> None:
    assert list(nodes_of(["cnn", "resnet8", "cnn", "cnn"])) == ["cnn", "resnet8", "cnn_2", "cnn_3"]
    assert list(nodes_of([{"_target_": "kd.models.hub.timm", "name": "resnet18.a1_in1k"}])) == ["resnet18_a1_in1k"]


def test_a_peer_with_the_student_s_own_weights_is_refused(
    complain: Complain, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (*SMALL, "teacher=peers", "objective=dml", "logger=none", f"student.checkpoint={runs / 'ema/run'}")
    assert "teacher: peers.cnn has the same weights as the student" in complain(*words)


def test_backbone_without_a_classifier_is_exported_but_not_evaluated(runs: Path, complain: Complain) -> None:
    assert "its classifier is not trained; train a linear probe first" in complain(
        f"run={runs / 'ressl/run'}", command="evaluate"
    )
    from kd.export import export

    export(str(runs / "ressl/run"), "safetensors")
    assert "classifier is NOT trained" in (runs / "ressl/run/export/safetensors/card.md").read_text()


def test_report_separates_methods_by_decay(runs: Path, tmp_path: Path) -> None:
    trained(tmp_path / "one", *SMALL, "teacher=ema", "teacher.decay=0.9")
    trained(tmp_path / "two", *SMALL, "teacher=ema", "teacher.decay=0.99")
    table = write(tmp_path, tmp_path).markdown()
    assert "repeat" not in table
    assert "0.99" in table


@pytest.mark.parametrize("name", ["mutual", "mean_teacher", "ressl"])
def test_their_experiments_train(name: str, tmp_path: Path) -> None:
    images = ("data=synthetic", "data.shape=[1,28,28]", "data.classes=4", "data.train=200", "data.test=40")
    sizes = ("data.batch_size=16", "data.per_class=30", "epochs=1")
    folder = trained(tmp_path, f"experiment=fashion_mnist/{name}", *images, *sizes, "data.pad=1")
    assert json.loads((folder / "summary.json").read_text())["training"]["epochs"] == 1


@pytest.mark.slow
def test_generations_and_assistants_are_chains_of_runs(kd_train: Run, tmp_path: Path) -> None:
    quiet = ("logger=none", "trainer.enable_progress_bar=false", "teacher.min_accuracy=0")
    first = ("student=resnet8", "teacher=none", "objective=ce", "hydra.run.dir=first")
    again = ("student=resnet8", "teacher=resnet8", "teacher.checkpoint=first", "hydra.run.dir=second")
    small = ("student=cnn", "teacher=resnet8", "teacher.checkpoint=second", "hydra.run.dir=third")
    for words in (first, again, small):
        done = kd_train(*SMALL[:-1], *(quiet[:2] if words is first else quiet), *words)
        assert done.returncode == 0, done.stderr[-3000:]
    chain = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "second", "third")]
    assert [told["teacher"] and told["teacher"]["checkpoint"] for told in chain] == [None, "first", "second"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REGIMES)
def test_killed_run_resumes_to_the_same_result(name: str, tmp_path: Path) -> None:
    words = (*SMALL, "epochs=3", "callbacks.last.steps=1", *REGIMES[name], *QUIET)
    full = whole(tmp_path, "full", *words)
    for batch in (1, 3):
        struck = interrupted(tmp_path, f"struck{batch}", {"moment": "step", "epoch": 1, "batch": batch}, *words)
        as_if_nothing_happened(struck, full)
