"""Switches that make a step faster; any difference in rounding is measured before the first step."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from kd.callbacks._lightning import bf16_on_cpu, drop_compiled
from kd.callbacks.position import validation_batches
from kd.data.batch import Batch
from kd.data.datamodule import data_of
from kd.distill.teacher import Frozen, FrozenTeacher, Teacher
from kd.errors import InputError, unknown
from kd.models.activation_checkpointing import recompute
from kd.models.check import CLOSE
from kd.models.inference import for_inference, takes_channels_last

log = logging.getLogger(__name__)

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OF_TRAINER = {"bf16-mixed": "bf16", "bf16": "bf16", "16-mixed": "fp16", "16": "fp16"}
CACHED_AS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
IMAGES = 256  # validation images on which a faster teacher is compared with the plain one


@dataclass(frozen=True)
class Speed:
    """The switches; docs/performance.md has the gain of each.

    Args:
        channels_last: whether both networks run in channels-last layout.
        fold: whether the teacher's batch norms are folded into its convolutions.
        teacher_precision: ``32``, ``bf16`` or ``fp16``, by autocast; ``auto`` follows trainer.precision.
        min_agreement: the least share of validation images for which a teacher in lower precision must predict the
            same class as the plain teacher.
        compile: ``true``, ``false``, or ``teacher`` alone.
        recompute: whether the student's blocks recompute their activations, which trades time for memory.

    Raises:
        InputError: a value that is none of these.
    """

    channels_last: bool = True
    fold: bool = True
    teacher_precision: str = "auto"
    min_agreement: float = 0.95
    compile: Any = False
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.teacher_precision not in ("auto", *PRECISIONS):
            raise unknown("speed.teacher_precision", self.teacher_precision, ("auto", *PRECISIONS))
        if self.compile not in (True, False, "teacher"):
            raise unknown("speed.compile", str(self.compile), ("true", "false", "teacher"))
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"speed.min_agreement must lie in [0, 1], got {self.min_agreement:g}")
        if self.recompute and self.compile is True:
            raise InputError("speed.recompute=true and speed.compile=true exclude each other")

    def precision(self, trainer: str) -> str | None:
        """The teacher's precision, given the trainer's; None if it is the student's."""
        precision = OF_TRAINER.get(trainer) if self.teacher_precision == "auto" else self.teacher_precision
        return None if precision == "32" and trainer in ("32-true", "32") else precision

    def cached_as(self, trainer: str) -> str:
        """The precision under which the teacher's logits are cached."""
        precision = self.precision(trainer)
        return trainer if precision is None or self.teacher_precision == "auto" else CACHED_AS[precision]


class ApplySpeed(Callback):
    """Applies :class:`Speed` to a run, for the duration of its training.

    Compiled code runs in training steps of full batches; everything else, such as validation, has other shapes and
    would be recompiled. Checkpoints are those of a plain run.

    Raises:
        InputError: a faster teacher whose logits differ from the plain one's; the switch is named.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.how: dict[str, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        student, data = pl_module.student, data_of(trainer)
        mode = "reduce-overhead" if trainer.strategy.root_device.type == "cuda" else None
        one = trainer.accumulate_grad_batches == 1  # gradients of a CUDA graph cannot be accumulated
        example = torch.rand(2, *data.shape)
        if self.speed.channels_last:
            for name, part in pl_module.named_children():  # including a teacher that is trained, and connectors
                if not isinstance(part, FrozenTeacher):
                    self._set_layout(name, part, example)
        self._warn(trainer)
        if self.speed.recompute:
            recompute(student)
        if self.speed.compile is True:
            student.compile(mode=mode if one else None)
        for name, frozen in _frozen(pl_module).items():
            self._speed_up(name, frozen, trainer, example)
            if self.speed.compile:
                frozen.runner.compile(mode=mode)
        if self.speed.compile:
            torch.compiler.set_stance("force_eager")

    @staticmethod
    def _set_layout(name: str, part: Any, example: Tensor) -> None:
        """Sets a part of the distiller to channels-last layout, except networks that do not support it."""
        whole = {name: part} if name == "student" else {}
        networks = part.networks() if isinstance(part, Teacher) else whole
        plain = [n for n, network in networks.items() if not takes_channels_last(network, example, trains=True)]
        part.to(memory_format=torch.channels_last)
        for inner in plain:
            networks[inner].to(memory_format=torch.contiguous_format)
            log.info(
                "%s: kept in the default layout, as it does not run in channels-last (view() instead of reshape()?)",
                name,
            )

    def _warn(self, trainer: pl.Trainer) -> None:
        """Warns of bfloat16 on a processor that computes it in software."""
        precisions = {
            "trainer.precision": OF_TRAINER.get(str(trainer.precision)),
            "speed.teacher_precision": self.speed.teacher_precision,
        }
        if "bf16" in precisions.values() and trainer.strategy.root_device.type == "cpu" and not bf16_on_cpu():
            key = next(key for key, precision in precisions.items() if precision == "bf16")
            log.warning("%s: this processor has no instructions for bfloat16; float32 is faster", key)

    def _speed_up(self, name: str, frozen: Frozen, trainer: pl.Trainer, example: Tensor) -> None:
        layers, precision = frozen.taps.layers, self.speed.precision(str(trainer.precision))
        lower = precision in ("bf16", "fp16")
        frozen.tap(())  # so that a copy has no hooks
        dtype = PRECISIONS[str(precision)] if lower else None
        fold = self.speed.fold and not layers
        last = self.speed.channels_last and takes_channels_last(frozen.network, example, trains=False)
        if self.speed.channels_last and not last:
            log.info("%s: kept in the default layout, as it does not run in channels-last", f"teacher {name}".strip())
        if fold or last or lower or self.speed.compile:
            runner, folded = for_inference(frozen.network, example, fold, last, dtype)
            frozen.use_runner(runner, PRECISIONS.get(str(precision)))
            self.how[name] = ", ".join(
                [f"{folded} batch norms folded"] * bool(folded)
                + ["channels last"] * last
                + [f"weights in {precision}"] * lower
                + ["compiled"] * bool(self.speed.compile)
            )
        frozen.tap(layers)

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        faster = {name: f for name, f in _frozen(pl_module).items() if f.runner is not f.network}
        if not faster:
            return
        for frozen in faster.values():  # a search for the batch size has ended by now
            frozen.compiled_for = data_of(trainer).batch_size if self.speed.compile else None
        with closing(validation_batches(trainer, pl_module)) as batches:
            first = next(batches, None)
        if first is None:
            return
        for name, frozen in faster.items():
            images = first.images[:IMAGES]
            if frozen.compiled_for:  # compiled code is verified on the one batch size that it is compiled for
                images = first.images[torch.arange(frozen.compiled_for) % len(first.images)]
            with self._compiled():
                line = self._verify(name, frozen, images)
            if trainer.is_global_zero:
                log.info("%s", line)

    def _verify(self, name: str, frozen: Frozen, images: Tensor) -> str:
        """Compares the faster teacher with the plain one; returns the line for the log."""
        with torch.backends.cudnn.flags(allow_tf32=False):  # its rounding is coarser than the tolerance
            faster = frozen(Batch(images, images.new_zeros(len(images))))[""].float()
            plain = frozen.reference_logits(images).float()
        difference, label = float((plain - faster).abs().max()), f"teacher {name}".strip()
        agreement = float((plain.argmax(-1) == faster.argmax(-1)).float().mean())
        result = f"logits differ from the plain network's by at most {difference:.2g}"
        count = f"{len(images)} validation images"
        if frozen.precision in (None, torch.float32):
            if not difference <= CLOSE * max(float(plain.abs().max()), 1.0):
                raise InputError(self._remedy(label, result, frozen, images, plain))
            return f"{label}: {self.how[name]}; {result} on {count}"
        of_std = difference / float(plain.std())
        result = f"{result} ({of_std:.2g} of their standard deviation), the same class on {100 * agreement:.1f} %"
        if not agreement >= self.speed.min_agreement:
            raise InputError(
                f"speed.teacher_precision: the {label}'s {result} of {count}, less than "
                f"speed.min_agreement={self.speed.min_agreement:g}; set speed.teacher_precision=32"
            )
        return f"{label}: {self.how[name]}; {result} of {count}"

    def _remedy(self, label: str, result: str, frozen: Frozen, images: Tensor, plain: Tensor) -> str:
        """The message for a faster teacher with other logits: names the first switch that is on."""
        repeated = frozen.reference_logits(images).float()
        if not torch.allclose(plain, repeated, rtol=CLOSE, atol=CLOSE):
            return f"the {label} gives different logits for the same images at each call in eval mode: fix its forward"
        switches = {"fold": self.speed.fold, "channels_last": self.speed.channels_last, "compile": self.speed.compile}
        switch = next((name for name, on in switches.items() if on), None)
        if switch is None:
            return f"the {label}'s {result}, more than rounding; set teacher.cache=off and report this network"
        return f"speed.{switch}: the {label}'s {result}, more than rounding; set speed.{switch}=false"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        device, data = trainer.strategy.root_device, data_of(trainer)
        for cached in _cached(pl_module).values():
            if device.type == "cuda" and pl_module.asks_teacher() and (plan := data.plan(trainer.current_epoch)):
                cached.prefetch(*plan, device)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.speed.compile:
            torch.compiler.set_stance("default")
            torch.compiler.cudagraph_mark_step_begin()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.speed.compile:
            torch.compiler.set_stance("force_eager")

    def _compiled(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("default") if self.speed.compile else nullcontext()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.speed.compile:
            for network in (pl_module.student, *(f.runner for f in _frozen(pl_module).values())):
                drop_compiled(network)
            torch.compiler.set_stance("default")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]  # updated in place, as the dictionary carries torch's metadata
        state.update({k: v.contiguous() for k, v in state.items() if isinstance(v, Tensor)})


def _frozen(module: Any) -> dict[str, Frozen]:
    """The frozen members of a distiller's teacher by name."""
    return {} if module.teacher is None else module.teacher.frozen_members()


def _cached(module: Any) -> dict[str, Any]:
    """The cached members of a distiller's teacher by name."""
    return {} if module.teacher is None else module.teacher.cached_members()
