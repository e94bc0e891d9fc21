"""The distiller: a LightningModule with a student, an objective and optionally a teacher."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd.data.adapt import Adapter
from kd.data.batch import Batch
from kd.data.datamodule import data_of
from kd.distill.cached import Cached
from kd.distill.ensemble import Ensemble
from kd.distill.metrics import Predictions, Scores
from kd.distill.objective import Objective
from kd.distill.parts import objective_of, optim_of, seed_of, teacher_of
from kd.distill.pretraining import Stage, begin_anew, stage_of
from kd.distill.taps import Taps, tried
from kd.distill.teacher import Frozen, FrozenTeacher, fingerprints
from kd.distill.term_check import check_terms
from kd.errors import InputError
from kd.losses.cross_entropy import class_of, entropy, labelled
from kd.losses.divergences import kl, soft_cross_entropy
from kd.models.normalized import unwrap
from kd.optim import Optim
from kd.rng import STEP, hashed

log = logging.getLogger(__name__)


class Distiller(pl.LightningModule):
    """Trains ``student`` and the parameters of ``objective``; ``teacher`` is frozen.

    Args:
        student: maps images [B, C, H, W] to logits [B, classes].
        teacher: a teacher, or a network, which is frozen; None if no term needs a teacher.
        objective: the weighted terms, a dict of terms or losses, or one loss; built here from one example batch.
        optim: the optimiser and its schedule, or a function that creates an optimiser from parameters, with the
            default schedule; None for evaluation only.
        shape: [C, H, W] of the images.
        classes: number of classes.
        T: the temperature of the logged ``train/kl``, ``train/soft_ce`` and ``teacher/entropy``, for which
            kl = soft_ce - entropy.
        config: plain containers, saved in checkpoints as hyperparameters.
        shuffle_teacher: a control: in training, each sample gets another sample's teacher tensors, so that an
            improvement cannot come from what the teacher predicts for the sample.

    Raises:
        InputError: a term needs a teacher and there is none, a layer does not exist, or a network's output is not
            [B, classes].
    """

    classifies = True  # whether the metrics evaluate the student's own classifier

    def __init__(
        self,
        student: nn.Module,
        teacher: Frozen | Cached | Ensemble | nn.Module | None,
        objective: Objective | Mapping[str, nn.Module] | nn.Module,
        optim: Optim | Callable[[Any], Optimizer] | None = None,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        T: float = 4.0,
        config: Mapping[str, Any] | None = None,
        shuffle_teacher: bool = False,
    ) -> None:
        super().__init__()
        self.shuffle_teacher = shuffle_teacher
        self.save_hyperparameters(dict(config or {}), logger=False)
        self.student, self.teacher, self.objective = student, teacher_of(teacher), objective_of(objective)
        self.optim, self.T, self.classes = optim_of(optim), T, classes
        self.taps = Taps(student, self.objective.layers("student"))
        self.adapt = Adapter(classes, shape)
        self._build(shape, classes)
        self.scores = nn.ModuleDict({part: Scores(classes, self.teacher is not None) for part in ("val", "test")})
        self._teacher_logits: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.predictions = Predictions()
        self.parts: dict[str, Tensor] = {}
        self.stage = Stage()
        self.seed = seed_of(config or {})
        self.teacher_sha256 = None if self.teacher is None else self.teacher.fingerprint()
        frozen = self.teacher.networks() if isinstance(self.teacher, FrozenTeacher) else {}
        # hashed as loaded: float64 training converts the networks
        self.members_sha256 = {name: fingerprints({"": network}) for name, network in frozen.items()}

    @torch.no_grad()
    def _build(self, shape: Sequence[int], classes: int) -> None:
        """Runs one example batch through both networks in eval mode: checks them, and sizes shape-dependent modules."""
        if self.objective.uses_teacher and self.teacher is None:
            names = [name for name, term in self.objective.named_terms() if "teacher" in term.needs]
            raise InputError(f"teacher=none, but the term {names[0]!r} needs a teacher; try objective=ce")
        images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        try:
            tapped = tried(self.taps, images)
        except RuntimeError as error:
            line = str(error).splitlines()[0]
            raise InputError(f"the student does not accept the data's images {list(shape)}: {line}") from error
        self.check_output("student", tapped[""], classes)
        self.student.train()
        answer = None
        if self.teacher is not None:
            self.teacher.tap(self.objective.layers("teacher"))
            answer = self.teacher(Batch(images, torch.zeros(2, dtype=torch.long)))
            self.check_output("teacher", answer[""], classes)
        networks = list(self.teacher.networks().values()) if self.teacher is not None else []
        self.objective.attach(unwrap(self.student), unwrap(networks[0]) if len(networks) == 1 else None)
        self.objective.build(tapped, answer)
        check_terms(self.objective, tapped, answer)

    def check_output(self, side: str, output: Any, classes: int) -> None:
        """Checks that a network's output for two images is logits [2, classes].

        Raises:
            InputError: it is not; the message names ``side``.
        """
        if not isinstance(output, Tensor) or output.shape != (2, classes):
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"the {side} must return logits [B, {classes}] for the data's {classes} classes, got {shape}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """The student's logits [B, classes] for images, uint8 or float in [0, 1]."""
        return self.objective.predict(self.taps(images))

    def configure_optimizers(self) -> Any:
        if self.optim is None:
            raise InputError("this distiller has no optim and cannot train")
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total) or total < 0:  # Lightning uses -1 for no limit
            raise InputError(
                "the training data has no length, so the schedule has no end: set trainer.max_steps=N, or "
                "trainer.limit_train_batches=N (batches per epoch)"
            )
        self.stage = stage_of(self.objective, self.optim, self.trainer)
        return self.optim.configure(self, int(total), self.stage.steps, self.objective.init_rate())

    def on_fit_start(self) -> None:
        self.objective.check_epochs(self.trainer.max_epochs)
        self.student.train()

    def batch(self, raw: Any, part: str) -> Batch:
        """A loader's output for ``part``, ``train``, ``val`` or ``test``, as a batch on this device.

        Raises:
            InputError: it is not a batch of images and labels, or a term does not support its labels.
        """
        data = data_of(self.trainer)
        if isinstance(raw, Batch) and data.checked:
            return raw
        self.adapt.names = [str(name) for name in data.names or ()]
        batch = self.adapt(raw, part, self.device)
        if part == "train":
            self.objective.check_labels(self.adapt.unlabelled, self.adapt.mixed)
            if self.adapt.without_labels and all("labels" in term.needs for _, term in self.objective.named_terms()):
                raise InputError("the training batches have no labels, but every term of the objective needs them")
        return batch

    def on_train_start(self) -> None:
        names = {type(callback).__name__ for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        if self.trainer.ckpt_path is not None and "Position" not in names:
            log.warning(
                "resume: add kd.callbacks.Position() to the trainer's callbacks, for saving and for resuming; without "
                "it, an interrupted epoch is not resumed at the sample where it stopped"
            )
        self.tell_epoch()  # not called by on_train_epoch_start if an epoch is resumed midway

    def on_train_epoch_start(self) -> None:
        if self.stage.epochs and self.current_epoch == self.stage.epochs:
            begin_anew(self.trainer)
        self.tell_epoch()

    def tell_epoch(self) -> None:
        """Passes the current epoch to the terms."""
        self.objective.on_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds dropout and the like by the position in the run, so that a resumed run draws the same numbers."""
        position = torch.tensor(batch_idx * self.trainer.world_size + self.global_rank)
        drawn = int(hashed(self.seed, self.current_epoch, position, STEP))
        torch.default_generator.manual_seed(drawn)  # torch.manual_seed takes a millisecond without a GPU
        if self.device.type == "cuda":
            torch.cuda.manual_seed(drawn)

    def on_train_epoch_end(self) -> None:
        if self.teacher is not None:
            self.teacher.on_epoch_end()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self.batch(batch, "train")
        student = self.taps(batch.images)
        teacher = self.teacher(batch) if self.teacher is not None and self.asks_teacher() else None
        if teacher is not None and self.shuffle_teacher:
            teacher = {layer: tensor.roll(1, 0) for layer, tensor in teacher.items()}
        total, parts = self.total(student, batch, teacher)
        self.parts = parts
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", total.detach(), prog_bar=True)  # not at every step, as each call takes time
            self.log_dict({f"train/{name}": part for name, part in parts.items()})
            self._log_step(batch, student[""].detach(), teacher, set(parts))
        return total

    def asks_teacher(self) -> bool:
        """Whether the teacher runs in the training steps of this epoch."""
        return self.objective.asks_teacher(self.current_epoch)

    def total(
        self, student: Mapping[str, Tensor], batch: Batch, teacher: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step and its unweighted parts by name; both sides are tapped tensors by layer."""
        return self.objective(student, batch.labels, teacher, batch.index, self.current_epoch)

    def _log_step(self, batch: Batch, student: Tensor, teacher: Mapping[str, Tensor] | None, parts: set[str]) -> None:
        self.log_dict({f"train/{name}": value for name, value in self.objective.logged().items()})
        if self.teacher is not None:
            self.log_dict({f"time/{name}": value for name, value in self.teacher.log_metrics().items()}, prog_bar=True)
        if self.objective.predictor is not None:
            return  # the student's own output is not its prediction
        has_label = labelled(batch.labels)
        if has_label.any():
            correct = ((student.argmax(-1) == class_of(batch.labels)) & has_label).sum()
            self.log("train/acc", correct / has_label.sum(), prog_bar=True)
        if teacher is not None:
            identity = self._identity(student.float(), teacher[""].float())
            self.log_dict({tag: value for tag, value in identity.items() if tag[6:] not in parts})

    def _identity(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The three terms of KL(p || q) = H(p, q) - H(p), without the factor T^2."""
        p = (teacher / self.T).softmax(-1)
        return {
            "train/kl": kl(student, teacher, self.T) / self.T**2,
            "train/soft_ce": soft_cross_entropy(student / self.T, p),
            "teacher/entropy": entropy(teacher, self.T),
        }

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", self.batch(batch, "val"), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", self.batch(batch, "test"), batch_idx)

    def _evaluate(self, part: str, batch: Batch, batch_idx: int) -> None:
        scores = self.scores[part]
        assert isinstance(scores, Scores)
        student, teacher = self(batch.images), self.answer(part, batch, batch_idx)
        scores.update(student, batch.labels, teacher)
        if part == "test":
            self.predictions.update(batch.index, batch.labels, student, teacher)
        for name, metric in scores.named().items():
            tag = f"{part}/{name}" if part == "test" else f"{part}/{name}".replace("val/teacher_", "teacher/")
            self.log(tag, metric, on_step=False, on_epoch=True, prog_bar=tag == "val/acc")

    def answer(self, part: str, batch: Batch, batch_idx: int) -> Tensor | None:
        """The teacher's logits, cached per batch, as neither the frozen teacher nor the evaluation data changes."""
        if self.teacher is None:
            return None
        cached = self._teacher_logits.get((part, batch_idx))
        if cached is not None and batch.index is not None and torch.equal(cached[0], batch.index):
            return cached[1]
        logits = self.teacher(batch)[""]
        if batch.index is not None:
            self._teacher_logits[part, batch_idx] = (batch.index, logits)
        return logits

    def on_validation_epoch_end(self) -> None:
        self._reset_confusion("val")

    def on_test_epoch_end(self) -> None:
        self._reset_confusion("test")

    def _reset_confusion(self, part: str) -> None:
        scores = self.scores[part]
        assert isinstance(scores, Scores)
        self.confusion = scores.confusion.compute()
        scores.confusion.reset()
        if part == "test":
            scores.check_finite("test")
        if self.trainer.sanity_checking or self.confusion.sum():
            return
        if part == "val":
            raise InputError("no validation image has a label, but selecting the best epoch needs labels")
        log.warning("no test image has a label: metrics that need labels are omitted")
