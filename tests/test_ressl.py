"""ReSSL: the golden case and three hand-computed steps through the module, both views, and from backbone to probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import HERE
from safetensors.torch import load_file
from test_dot import Keep, Net, data, fit
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from trained import trained

from kd import Arrays, Batch, Memory, Objective, Optim, Term
from kd.distill.ressl import MomentumTeacher, ReSSLDistiller, knn
from kd.losses.ressl import ReSSL

LR, DECAY, SIZE, T, T_TEACHER = 0.1, 0.7, 20, 0.1, 0.04


def distiller(student: nn.Module, loss: ReSSL, shape: tuple[int, ...] = (1, 4, 4), **options: Any) -> ReSSLDistiller:
    optim = Optim(lambda p: torch.optim.SGD(p, lr=LR), schedule="constant", warmup=0)
    teacher = MomentumTeacher(student, **options)
    return ReSSLDistiller(student, teacher, Objective({"ressl": Term(loss)}), optim, shape, 3, config={"seed": 0})


@pytest.mark.parametrize("case", ["p1", "p2"])
def test_the_golden_case_passes_through_the_module(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = json.loads((HERE / "golden" / "index.json").read_text())["cases"]
    about = next(known for known in cases if known["id"] == f"ressl__{case}")
    given = {key: torch.from_numpy(value) for key, value in np.load(HERE / "golden" / about["file"]).items()}
    options = about["hyperparameters"]
    dim, size = given["in_queue"].shape
    student = nn.Sequential(nn.Flatten(), nn.Linear(dim, 3))  # the embedding is the image
    loss = ReSSL(options["temperature_student"], options["temperature_teacher"], size)
    module = distiller(student, loss, (dim, 1, 1), hidden=0).double()
    loss.queue.copy_(given["in_queue"])  # type: ignore[union-attr]
    loss.pointer.fill_(options["ptr0"])
    fit(module, 0)  # a trainer, which the step asks for its place in the run
    module.train()
    for step in range(options["steps"]):
        q, k = (given[f"in_{side}_{step}"][:, :, None, None] for side in "qk")
        q.requires_grad_(True)
        monkeypatch.setattr(module, "views", lambda batch, q=q, k=k: (q, k))
        found = module.training_step(Batch(q, torch.zeros(len(q), dtype=torch.long), torch.arange(len(q))), step)
        torch.testing.assert_close(found, given[f"out_loss_step{step}"], rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(loss.queue, given[f"out_queue_after_step{step}"], rtol=1e-7, atol=1e-10)
        assert torch.equal(loss.pointer, given[f"out_ptr_after_step{step}"])
        (gradient,) = torch.autograd.grad(found, q)
        unit = given[f"in_q_{step}"]  # the case's gradient is of unit vectors, before their normalisation
        wanted = given[f"out_grad_q_{step}"]
        wanted = wanted - (wanted * unit).sum(1, keepdim=True) * unit
        torch.testing.assert_close(gradient.flatten(1), wanted, rtol=1e-6, atol=1e-9)


def test_three_steps_are_those_of_a_hand_computation() -> None:
    module: Any = distiller(Net(1), ReSSL(T, T_TEACHER, SIZE), decay=DECAY, dim=5, hidden=7).double()
    known, layers = data(), [module.student.hidden, module.head[0], module.head[2]]
    weights = [p.detach().clone().requires_grad_() for layer in layers for p in (layer.weight, layer.bias)]
    loss_of = module.objective.terms["ressl"].loss
    average, queue, pointer = [p.detach().clone() for p in weights], loss_of.queue.clone(), 0

    def projected(images: Tensor, w: list[Tensor]) -> Tensor:
        hidden = F.linear((images.double() / 255).flatten(1), w[0], w[1]).tanh()
        return F.normalize(F.linear(F.linear(hidden, w[2], w[3]).relu(), w[4], w[5]), dim=1)

    for batch, _ in zip(known.train_dataloader(), range(3)):  # without pad and flip both views are the image
        q, k = projected(batch.images, weights), projected(batch.images, average)
        relations = (k @ queue / T_TEACHER).softmax(1)
        loss = -(relations * (q @ queue / T).log_softmax(1)).sum(1).mean()
        for p, old, g in zip(weights, average, torch.autograd.grad(loss, weights)):
            p.data -= LR * g
            old.copy_(DECAY * old + (1 - DECAY) * p.data)
        queue = queue.clone()
        for key in k:
            queue[:, pointer], pointer = key, (pointer + 1) % SIZE
    fit(module, 3, precision="64-true")
    own = [p for layer in layers for p in (layer.weight, layer.bias)]
    moved = [module.momentum.network.hidden, module.momentum.head[0], module.momentum.head[2]]
    for mine, hand in zip([*own, *(p for layer in moved for p in (layer.weight, layer.bias))], [*weights, *average]):
        torch.testing.assert_close(mine.detach(), hand.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_of.queue, queue, rtol=1e-10, atol=1e-12)
    assert loss_of.pointer.item() == pointer == 24 % SIZE


def test_resumed_run_has_queue_head_and_teacher(tmp_path: Path) -> None:
    straight, second = (distiller(Net(1), ReSSL(size=SIZE), dim=5, hidden=7) for _ in range(2))
    fit(straight, 7, callbacks=[Keep(5, tmp_path / "last.ckpt")])
    fit(second, 7, ckpt_path=tmp_path / "last.ckpt")
    for key, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def _one_of_two(rank: int, place: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    loss, vectors = _made()
    for part in vectors.chunk(3):
        loss(part[rank::2], part[rank::2])
    torch.save((loss.queue, loss.pointer), f"{place}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _made() -> tuple[ReSSL, Tensor]:
    torch.manual_seed(0)
    loss, vectors = ReSSL(size=SIZE), torch.randn(24, 4)
    loss.build(vectors, vectors)
    return loss, vectors


def test_the_keys_of_all_processes_enter_the_queue(tmp_path: Path) -> None:
    start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method="forkserver")
    alone, vectors = _made()
    for part in vectors.chunk(3):
        part = torch.cat([part[0::2], part[1::2]])
        alone(part, part)
    for rank in range(2):
        queue, pointer = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(queue, alone.queue)
        assert torch.equal(pointer, alone.pointer)


def test_the_weak_view_is_another_crop_and_flip_of_the_same_image() -> None:
    images = torch.arange(1, 37).view(1, 1, 6, 6).repeat(60, 1, 1, 1).to(torch.uint8)
    labels = torch.arange(60) % 2
    memory = Memory(Arrays((images, labels), (images, labels), ("a", "b")), 20, val="test", pad=2, flip=True, erase=1.0)
    index = torch.arange(60)
    weak = memory.weak(index, 0, 3)
    assert torch.equal(weak, memory.weak(index, 0, 3))
    assert not torch.equal(weak, memory.weak(index, 0, 4))
    assert torch.equal(weak[7:9], memory.weak(index[7:9], 0, 3))
    strong = memory.augment(Batch(images, labels, index), 0, 3).images
    assert (strong == weak).flatten(1).all(1).sum() < 6
    middle = weak[:, 0, 2:4, 2:4].flatten(1)
    assert (middle > 0).all()  # nothing is erased; a shift by 2 leaves the middle inside


def test_similarities_are_precise_under_autocast() -> None:
    torch.manual_seed(0)
    bank, labels = torch.nn.functional.normalize(torch.randn(200, 16), dim=1), torch.arange(200) % 3
    plain = knn(bank[:20], bank, labels, 3, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn(bank[:20], bank, labels, 3, 10), plain)


def test_neighbours_vote_by_similarity() -> None:
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    vote = knn(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), bank, torch.tensor([0, 0, 1, 2]), 3, neighbours=2)
    assert vote.argmax(1).tolist() == [0, 1]
    torch.testing.assert_close(vote.exp().sum(1), torch.ones(2))
    near, far = (torch.tensor([1.0, 0.9 / 0.82**0.5]) / 0.07).softmax(0).tolist()
    assert near > far
    torch.testing.assert_close(vote[0].exp(), torch.tensor([0.99 + 0.01 / 3, 0.01 / 3, 0.01 / 3]))


def test_backbone_trains_a_probe_usable_as_teacher(tmp_path: Path) -> None:
    small = ("data=digits", "data.batch_size=50", "student=resnet8", "data.pad=1", "data.per_class=30")
    words = ("teacher=momentum", "objective=ressl", "objective.ressl.size=256", "teacher.dim=32", "data.erase=0.5")
    source = trained(tmp_path / "ressl", *small, *words, "data.unlabelled=true", "epochs=3")
    start = (f"student.checkpoint={source}", "student.freeze=backbone", "student.head=new")
    probe = trained(tmp_path / "probe", *small, *start, "teacher=none", "objective=ce", "epochs=20", "optim.lr=0.2")
    before, after = (load_file(folder / "student.safetensors") for folder in (source, probe))
    assert all(torch.equal(after[key], value) for key, value in before.items() if not key.startswith("fc."))
    told = [json.loads((folder / "summary.json").read_text())["metrics"] for folder in (source, probe)]
    assert min(part["best"]["val/acc"] for part in told) > 0.5  # chance is 0.1
    taught = ("teacher=resnet8", f"teacher.checkpoint={probe}", "student=cnn", "epochs=1")
    student = trained(tmp_path / "student", *(w for w in small if not w.startswith("student")), *taught)
    assert json.loads((student / "summary.json").read_text())["teacher"]["accuracy"] > 0.5
