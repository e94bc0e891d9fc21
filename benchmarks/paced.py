"""Training steps that are let go one at a time: of a hand-written loop, and of kd through Lightning's Trainer.

All of them run in one thread of the operating system. In threads of their own two equal steps lay up to a tenth
apart; each thread has a team of OpenMP workers and an arena of memory of its own, which may be why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from greenlet import getcurrent, greenlet
from torch import nn

import kd
from kd import Batch, Normalized
from kd.callbacks.history import History
from kd.callbacks.teacher_gate import TeacherGate
from kd.distill.teacher_options import TeacherOptions
from kd.train import assemble

T, ALPHA = 4.0, 0.9


@torch.no_grad()
def settled(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """The network with running statistics of two batches, so that no activation runs away in eval mode."""
    network.train()
    for _ in range(2):
        network(images)
    return network


class Bare:
    """A step of RepDistiller and mdistiller without their meters: eager, float32, on prepared float images.

    Neither loading nor augmentation nor normalisation is in it, as they are in kd's.
    """

    def __init__(self, config: dict[str, Any], data: Any, device: torch.device) -> None:
        torch.manual_seed(0)
        batch = next(iter(data.memory.loader("train")))
        images = batch.images.float() / 255 - 0.5
        self.images, self.labels = images.to(device), batch.labels.to(device)
        teacher = assemble.network(config["teacher"], "teacher", data, None, TeacherOptions).net
        student = assemble.network(config["student"], "student", data).net
        self.teacher = settled(teacher, images[:16]).eval().to(device)
        self.student = student.train().to(device)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def step(self) -> None:
        student = self.student(self.images)
        with torch.no_grad():
            teacher = self.teacher(self.images)
        soft = F.kl_div(F.log_softmax(student / T, 1), F.softmax(teacher / T, 1), reduction="batchmean") * T**2
        loss = (1 - ALPHA) * F.cross_entropy(student, self.labels) + ALPHA * soft
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def stop(self) -> None:
        pass


class Done(Exception):
    """Ends a run from within its loader."""


class Fit:
    """kd-train itself, on a stack of its own, which waits before each batch until it is let go.

    A step is all that lies between two batches: loading, augmentation, both networks, the update, logging, guards.
    """

    def __init__(self, config: dict[str, Any], data: Any, folder: str, networks: Bare | None = None) -> None:
        self.config, self.data, self.folder = config, data, Path(tempfile.mkdtemp(dir=folder))
        teacher = assemble.teacher(config, data, weights=False, cache=self.cached)
        for network in () if teacher is None else teacher.networks().values():
            assert isinstance(network, Normalized)
            if networks is not None:
                network.net.load_state_dict(networks.teacher.state_dict())
        self.distiller = assemble.distiller(config, data, teacher)
        self.trainer = assemble.trainer(config, self.folder, [TeacherGate({"": 0.0}), History()])
        self.stack = greenlet(self._run)
        self.stack.switch()

    @property
    def cached(self) -> bool:
        """Whether a table of the teacher's answers is kept."""
        return (self.config["teacher"] or {}).get("cache", "off") != "off"

    def _run(self) -> None:
        with suppress(Done):
            self.trainer.fit(self.distiller, datamodule=_Paced(self.data))

    def step(self) -> None:
        self.stack.switch()

    def stop(self) -> None:
        self.stack.throw(Done)


class Own:
    """The step of a :class:`Fit` without Lightning, logging and guards: the same networks, optimiser and arithmetic."""

    def __init__(self, fit: Fit, device: torch.device) -> None:
        self.fit, self.device, self.batches = fit, device, iter(())
        (self.optimizer,) = fit.trainer.optimizers
        mixed = str(fit.config["trainer"]["precision"]) == "bf16-mixed"
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed)

    def _batch(self) -> Batch:
        memory = self.fit.data.memory
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(memory.loader("train", self.fit.config["seed"]))
            batch = next(self.batches)
        moved = (part if part is None else part.to(self.device) for part in batch)
        return memory.augment(Batch(*moved), self.fit.config["seed"], 0)

    def step(self) -> None:
        distiller, batch = self.fit.distiller, self._batch()
        with self.autocast:
            student = distiller.taps(batch.images)
            teacher = distiller.teacher(batch) if distiller.teacher is not None else None
            total, _ = distiller.objective(student, batch.labels, teacher, batch.index)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def stop(self) -> None:
        pass


class _Paced(kd.Data):
    """Data whose training batches wait to be let go."""

    def __init__(self, data: Any) -> None:
        super().__init__(data.memory, data.seed)

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()

        class Waiting:
            def __len__(self) -> int:
                return len(loader)

            def __iter__(self) -> Iterator[Batch]:
                for batch in loader:
                    waiting = getcurrent().parent
                    assert waiting is not None
                    waiting.switch()
                    yield batch

        return Waiting()
