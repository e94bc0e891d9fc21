"""TensorBoard: layout, hyper-parameters, and the images on which teacher and student disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from kd.callbacks.position import validation_batches
from kd.callbacks.tensorboard import board
from kd.data.datamodule import data_of
from kd.errors import InputError
from kd.losses.cross_entropy import class_of

LAYOUT = {
    "distillation": {
        "accuracy: student and teacher": ["Multiline", ["^val/acc$", "^teacher/acc$"]],
        "train accuracy": ["Multiline", ["^train/acc$"]],
        "KL = soft cross-entropy - entropy": [
            "Multiline",
            ["^train/kl$", "^train/soft_ce$", "^teacher/entropy$"],
        ],
        "calibration error": ["Multiline", ["^val/ece$"]],
        "agreement with the teacher": ["Multiline", ["^val/agreement$"]],
    }
}


class Charts(Callback):
    """TensorBoard's custom-scalars layout, and an HPARAMS tab that names its metrics from the start.

    They include the teacher's accuracy and the agreement with it only if there is a teacher.

    Args:
        hyperparameters: flat names to plain values.
    """

    STUDENT = {"hp/val_acc": "val/acc", "hp/val_nll": "val/nll"}
    TEACHER = {"hp/teacher_acc": "teacher/acc", "hp/agreement": "val/agreement"}

    def __init__(self, hyperparameters: dict[str, Any] | None = None) -> None:
        self.hyperparameters = hyperparameters or {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return  # logged at the start of the run
        has_teacher = getattr(pl_module, "teacher", None) is not None
        metrics = [*self.STUDENT, *(self.TEACHER if has_teacher else ())]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.hyperparameters, dict.fromkeys(metrics, 0.0))
            else:
                logger.log_hyperparams(self.hyperparameters)
        with board(trainer) as writer:
            if writer is not None:
                writer.add_custom_scalars(LAYOUT)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        with board(trainer) as writer:
            for tag, source in {**self.STUDENT, **self.TEACHER}.items():
                if writer is not None and source in trainer.callback_metrics:  # at the last finished step
                    writer.add_scalar(tag, float(trainer.callback_metrics[source]), trainer.global_step - 1)


class Pictures(Callback):
    """At the end of training: the confusion matrix, and the images on which teacher and student disagree most.

    Args:
        images: number of validation images in the grid.
    """

    def __init__(self, images: int = 32) -> None:
        if images < 1:
            raise InputError(f"images must be at least 1, got {images}")
        self.images = images

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        counts = getattr(pl_module, "confusion", None)
        with board(trainer) as writer:
            if writer is None or not isinstance(counts, Tensor):
                return
            writer.add_image("pictures/confusion", confusion_image(counts), trainer.global_step)
            disagreed = self._disagreed(trainer, pl_module) if pl_module.teacher is not None else None
            if disagreed is not None:
                images, classes = disagreed
                names = data_of(trainer).names
                writer.add_image("pictures/disagreement", grid(images), trainer.global_step)
                writer.add_text("pictures/disagreement", caption(classes, names), trainer.global_step)

    @torch.no_grad()
    def _disagreed(self, trainer: pl.Trainer, module: Any) -> tuple[Tensor, Tensor] | None:
        """The images with the largest KL, and for each its label and the classes predicted by teacher and student."""
        images, classes, scores = [], [], []
        module.eval()
        for batch in validation_batches(trainer, module):
            student, teacher = module(batch.images).float(), module.teacher(batch)[""].float()
            p, q = teacher.softmax(-1), student.softmax(-1)
            scores.append((p * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1).cpu())
            classes.append(torch.stack([class_of(batch.labels), p.argmax(-1), q.argmax(-1)], 1).cpu())
            images.append(batch.images.cpu())
        if not scores:
            return None
        order = torch.cat(scores).argsort(descending=True)[: self.images]
        return torch.cat(images)[order], torch.cat(classes)[order]


def confusion_image(counts: Tensor, size: int = 480) -> Tensor:
    """A confusion matrix [C, C] as an image [3, size, size]: rows are labels, darker is a larger share of the row."""
    shares = counts.float() / counts.sum(1, keepdim=True).clamp(min=1)
    cell = max(1, size // len(shares))
    blue = torch.tensor([0.03, 0.19, 0.42]).view(3, 1, 1)
    image = 1 - shares.cpu()[None] * (1 - blue)
    return F.interpolate(image[None], scale_factor=cell, mode="nearest")[0]


def grid(images: Tensor, columns: int = 8, scale: int = 56) -> Tensor:
    """Images [N, C, H, W] side by side as one image, enlarged without smoothing."""
    pixels = images.float() / (255 if images.dtype == torch.uint8 else 1)
    pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]
    pixels = F.interpolate(pixels, scale_factor=max(1, round(scale / pixels.shape[-1])), mode="nearest")
    pixels = F.pad(pixels, (2, 2, 2, 2), value=1.0)
    blank = torch.ones_like(pixels[:1]).expand(-len(pixels) % columns, -1, -1, -1)
    rows = torch.cat([pixels, blank]).split(columns)
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).clamp(0, 1)


def caption(classes: Tensor, names: Sequence[str] | None, columns: int = 8) -> str:
    """A markdown table for the grid: label, teacher's and student's prediction for each image."""
    name = lambda c: "?" if c < 0 else names[c] if names else str(c)  # noqa: E731 (-1 is unknown)
    cells = [f"**{name(y)}** teacher {name(t)}, student {name(s)}" for y, t, s in classes.tolist()]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    head = "|" + " |" * columns + "\n|" + "---|" * columns + "\n"
    return head + "\n".join("| " + " | ".join(row) + " |" for row in rows)
