"""ReSSL: learning without labels, from a momentum teacher's relations between each image and a queue of others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.augment import permutation
from kd.data.batch import Batch
from kd.data.datamodule import data_of
from kd.distill.distiller import Distiller
from kd.distill.mean_teacher import check_decay, follow
from kd.distill.objective import Objective
from kd.distill.taps import Taps
from kd.errors import InputError
from kd.models.check import copied
from kd.models.normalized import unwrap
from kd.models.weights import classifier_names
from kd.optim import Optim

EMBEDDING = "embedding"


class MomentumTeacher(nn.Module):
    """The teacher of ReSSL: a moving average of the student and its projection head, initialised as a copy of them.

    Args:
        student: a network with a linear classifier, whose input is the embedding.
        decay: average = decay * average + (1 - decay) * student after each step.
        dim: width of the projections, whose relations are compared.
        hidden: width of the head's hidden layer; 0 for no head.
        neighbours: number of nearest training images that vote in the k-NN classifier of validation and test.
        bank: maximum number of labelled training images that they are searched in.

    Raises:
        InputError: a number is out of range, or the network has no linear layer.
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float = 0.99,
        dim: int = 128,
        hidden: int = 512,
        neighbours: int = 20,
        bank: int = 10_000,
    ) -> None:
        super().__init__()
        check_decay(decay)
        for name, value in {"dim": dim, "neighbours": neighbours, "bank": bank, "hidden": hidden}.items():
            if value < (least := 0 if name == "hidden" else 1):
                raise InputError(f"{name} must be at least {least}, got {value}")
        self.decay, self.neighbours, self.most = decay, neighbours, bank
        width: Any = unwrap(student).get_submodule(classifier_names(unwrap(student))[-1]).in_features
        head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim)) if hidden else nn.Identity()
        self.width = dim if hidden else width
        self.network, self.head = copied(student), head
        self.requires_grad_(False)
        self.taps = Taps(self.network, [EMBEDDING])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The projections [B, dim], without gradient."""
        return self.head(self.taps(images)[EMBEDDING].flatten(1))

    def follow(self, student: nn.Module, head: nn.Module) -> None:
        """Updates the averages of the student and its head."""
        follow(self.network, student, self.decay)
        follow(self.head, head, self.decay)


class ReSSLDistiller(Distiller):
    """Zheng et al. 2021, "ReSSL: Relational Self-Supervised Learning with Weak Augmentation" (arXiv:2107.09282).

    The student gets the batch with the data's augmentation, the teacher only another crop and flip of the same images.
    The terms compare the projections [B, dim] of both, as ``""``. Validation and test use a k-NN classifier on the
    student's embeddings: the labelled training images, without augmentation, that are nearest by cosine vote with
    weight exp(cosine / 0.07). The student's own classifier is not trained; use a linear probe for it.

    Raises:
        InputError: a term needs labels or positions, or uses layers; the data is not in memory, mixes or repeats
            images, or has no labels.
    """

    classifies = False

    def __init__(
        self,
        student: nn.Module,
        teacher: MomentumTeacher,
        objective: Objective,
        optim: Optim | None = None,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        T: float = 4.0,
        config: Mapping[str, Any] | None = None,
        shuffle_teacher: bool = False,
    ) -> None:
        super().__init__(student, None, objective, optim, shape, classes, T, config)
        self.momentum, self.head = teacher, copy.deepcopy(teacher.head).requires_grad_(True)
        self.embed = Taps(student, [EMBEDDING])
        example = torch.ones(2, teacher.width)
        objective.build({"": example}, {"": example})
        self.bank: tuple[Tensor, Tensor] | None = None

    def _build(self, shape: Sequence[int], classes: int) -> None:
        for name, term in self.objective.named_terms():
            if set(term.needs) - {"student", "teacher"} or term.layers("student") or term.layers("teacher"):
                why = "compares the projections of two views, without labels, layers or positions"
                raise InputError(f"objective.{name}: teacher=momentum {why}; set objective=ressl")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._labelled()

    def _memory(self) -> Any:
        memory = data_of(self.trainer).memory
        if memory is None or memory.mixed or memory.repeats > 1:
            raise InputError("teacher=momentum needs data in memory, without data.mixup, data.cutmix or data.repeats")
        return memory

    def _labelled(self) -> Tensor:
        """The positions of the labelled training images."""
        labelled = (self._memory().parts["train"][1] >= 0).nonzero().flatten()
        if not len(labelled):
            raise InputError("the k-NN classifier needs labelled training images, but no training image has a label")
        return labelled

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images for the student and those for the teacher."""
        weak = self._memory().weak(batch.index, self.trainer.datamodule.seed, self.current_epoch)  # type: ignore[attr-defined]
        return batch.images, weak

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self.batch(batch, "train")
        strong, weak = self.views(batch)
        student, teacher = self.head(self.embed(strong)[EMBEDDING].flatten(1)), self.momentum(weak)
        total, self.parts = self.objective({"": student}, batch.labels, {"": teacher}, batch.index, self.current_epoch)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", total.detach(), prog_bar=True)
            self.log_dict({f"train/{name}": part for name, part in self.parts.items()})
        return total

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        self.momentum.follow(self.student, self.head)

    def on_validation_epoch_start(self) -> None:
        self.fill()

    def on_test_epoch_start(self) -> None:
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Stores embeddings [N, D] and labels [N] of labelled training images for the k-NN classifier."""
        memory = self._memory()
        images, labels = memory.parts["train"]
        labelled = self._labelled()
        chosen = labelled[permutation(len(labelled), 0, 0)[: self.momentum.most]]
        with self.trainer.precision_plugin.val_step_context():
            parts = [self._unit(images[some].to(self.device)) for some in chosen.split(memory.eval_batch_size)]
        # processes have different batch statistics before the first validation step, so all use rank 0's
        bank = self.trainer.strategy.broadcast(torch.cat(parts)).to(self.device)
        self.bank = bank, labels[chosen].to(self.device)

    def _unit(self, images: Tensor) -> Tensor:
        return F.normalize(self.embed(images)[EMBEDDING].flatten(1).float(), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """The log of the neighbours' vote shares [B, classes], smoothed by a hundredth spread over all classes."""
        if self.bank is None:
            raise InputError("the k-NN classifier has no images yet: call fill first")
        return knn(self._unit(images), *self.bank, self.classes, self.momentum.neighbours)

    def _evaluate(self, part: str, batch: Batch, batch_idx: int) -> None:
        super()._evaluate(part, batch, batch_idx)
        if part == "val":
            accuracy: Any = self.scores["val"].named()["acc"]  # type: ignore[operator]
            self.log("val/knn", accuracy, on_step=False, on_epoch=True)


def knn(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, neighbours: int, T: float = 0.07) -> Tensor:
    """The log of the smoothed vote of a bank's [N, D] rows nearest to unit vectors [B, D], each exp(cosine / T)."""
    with torch.autocast(queries.device.type, enabled=False):  # neighbours are too close for bfloat16
        near, nearest = (queries @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = queries.new_zeros(len(queries), classes).scatter_add_(1, labels[nearest], (near / T).softmax(1))
        return (0.99 * votes + 0.01 / classes).log()
