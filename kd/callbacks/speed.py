"""What makes a step faster and changes nothing else; where it rounds otherwise, that is measured before step one."""

from __future__ import annotations

import logging
import platform
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from kd.callbacks.position import validation_batches
from kd.data.batch import Batch
from kd.data.datamodule import data_of
from kd.distill.cached import Cached
from kd.distill.ensemble import Ensemble
from kd.distill.teacher import Frozen, FrozenTeacher, Teacher
from kd.errors import InputError, unknown
from kd.models.activation_checkpointing import recompute
from kd.models.inference import CLOSE, for_inference, takes_channels_last

log = logging.getLogger(__name__)

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LIGHTNINGS = {"bf16-mixed": "bf16", "bf16": "bf16", "16-mixed": "fp16", "16": "fp16"}
CACHED_AS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
IMAGES = 256  # of the validation set, on which a faster teacher is compared with the plain one


@dataclass(frozen=True)
class Speed:
    """The switches; docs/performance.md has what each brings.

    Args:
        channels_last: whether the convolutions of both networks run on channels-last maps.
        fold: whether the teacher's batch norms are folded into its convolutions.
        teacher_precision: ``32``, ``bf16`` or ``fp16``, as autocast computes; ``auto`` is as trainer.precision says.
        min_agreement: the least share of validation images on which a teacher in lower precision must answer with the
            plain teacher's class.
        compile: ``true``, ``false``, or ``teacher`` alone.
        recompute: whether the student's blocks recompute their activations, which saves memory and costs time.

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
        """In what the teacher computes where the trainer has this precision; None if exactly as the student does."""
        asked = LIGHTNINGS.get(trainer) if self.teacher_precision == "auto" else self.teacher_precision
        return None if asked == "32" and trainer in ("32-true", "32") else asked

    def cached_as(self, trainer: str) -> str:
        """The precision under which the teacher's answers are kept."""
        asked = self.precision(trainer)
        return trainer if asked is None or self.teacher_precision == "auto" else CACHED_AS[asked]


class ApplySpeed(Callback):
    """Applies :class:`Speed` to a run: before it trains, and only while it trains.

    Compiled code runs in training steps of full batches; everything else, validation above all, has other shapes and
    would be compiled anew. Checkpoints are those of a plain run.

    Raises:
        InputError: a faster teacher that does not answer as the plain one does; the switch is named.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.how: dict[str, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        student, data = pl_module.student, data_of(trainer)
        mode = "reduce-overhead" if trainer.strategy.root_device.type == "cuda" else None
        one = trainer.accumulate_grad_batches == 1  # a CUDA graph's gradients do not live on to be added to
        example = torch.rand(2, *data.shape)
        if self.speed.channels_last:
            for name, part in pl_module.named_children():  # a teacher that changes, too, and trained connectors
                if not isinstance(part, FrozenTeacher):
                    self._lay_out(name, part, example)
        self._warn(trainer)
        if self.speed.recompute:
            recompute(student)
        if self.speed.compile is True:
            student.compile(mode=mode if one else None)
        for name, frozen in teachers(pl_module.teacher).items():
            self._quicken(name, frozen, trainer, example)
            if self.speed.compile:
                frozen.runner.compile(mode=mode)
        if self.speed.compile:
            torch.compiler.set_stance("force_eager")

    @staticmethod
    def _lay_out(name: str, part: Any, example: Tensor) -> None:
        """Puts a part of the distiller on channels-last maps; its networks only where they run on them."""
        whole = {name: part} if name == "student" else {}
        networks = part.networks() if isinstance(part, Teacher) else whole
        plain = [n for n, network in networks.items() if not takes_channels_last(network, example, trains=True)]
        part.to(memory_format=torch.channels_last)
        for inner in plain:
            networks[inner].to(memory_format=torch.contiguous_format)
            log.info(
                "%s: in plain layout, as it does not run on channels-last maps (view() in place of reshape()?)",
                name,
            )

    def _warn(self, trainer: pl.Trainer) -> None:
        """Says where bfloat16 is asked of a processor that computes it in software."""
        asked = {
            "trainer.precision": LIGHTNINGS.get(str(trainer.precision)),
            "speed.teacher_precision": self.speed.teacher_precision,
        }
        if "bf16" in asked.values() and trainer.strategy.root_device.type == "cpu" and not bf16_on_cpu():
            at = next(key for key, kind in asked.items() if kind == "bf16")
            log.warning("%s: this processor has no instructions for bfloat16; in float32 a step takes less time", at)

    def _quicken(self, name: str, frozen: Frozen, trainer: pl.Trainer, example: Tensor) -> None:
        layers, asked = frozen.taps.layers, self.speed.precision(str(trainer.precision))
        lower = asked in ("bf16", "fp16")
        frozen.tap(())  # so that no copy carries hooks
        dtype = PRECISIONS[str(asked)] if lower else None
        fold = self.speed.fold and not layers
        last = self.speed.channels_last and takes_channels_last(frozen.network, example, trains=False)
        if self.speed.channels_last and not last:
            log.info("%s: in plain layout, as it does not run on channels-last maps", f"teacher {name}".strip())
        if fold or last or lower or self.speed.compile:
            runner, folded = for_inference(frozen.network, example, fold, last, dtype)
            frozen.use_runner(runner, PRECISIONS.get(str(asked)))
            self.how[name] = ", ".join(
                [f"{folded} batch norms folded"] * bool(folded)
                + ["channels last"] * last
                + [f"weights in {asked}"] * lower
                + ["compiled"] * bool(self.speed.compile)
            )
        frozen.tap(layers)

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        quick = {name: f for name, f in teachers(pl_module.teacher).items() if f.runner is not f.network}
        if not quick:
            return
        for frozen in quick.values():  # by now a finder of batch sizes has chosen
            frozen.compiled_for = data_of(trainer).batch_size if self.speed.compile else None
        with closing(validation_batches(trainer, pl_module)) as batches:
            first = next(batches, None)
        if first is None:
            return
        images = first.images
        for name, frozen in quick.items():
            shown = images[:IMAGES]
            if frozen.compiled_for:  # compiled code is proven on the one batch size for which it is made
                shown = images[torch.arange(frozen.compiled_for) % len(images)]
            with self._compiled():
                line = self._proof(name, frozen, shown)
            if trainer.is_global_zero:
                log.info("%s", line)

    def _proof(self, name: str, frozen: Frozen, images: Tensor) -> str:
        with torch.backends.cudnn.flags(allow_tf32=False):  # whose rounding is coarser than what is looked for
            quick = frozen(Batch(images, images.new_zeros(len(images))))[""].float()
            plain = frozen.reference_logits(images).float()
        apart, who = float((plain - quick).abs().max()), f"teacher {name}".strip()
        same = float((plain.argmax(-1) == quick.argmax(-1)).float().mean())
        seen = f"logits differ from the plain network's by at most {apart:.2g}"
        where = f"{len(images)} validation images"
        if frozen.precision in (None, torch.float32):
            if not apart <= CLOSE * max(float(plain.abs().max()), 1.0):
                raise InputError(self._unlike(who, seen, frozen, images, plain))
            return f"{who}: {self.how[name]}; {seen} on {where}"
        of_std = apart / float(plain.std())
        said = f"{seen} ({of_std:.2g} of their standard deviation), the same class on {100 * same:.1f} %"
        if not same >= self.speed.min_agreement:
            raise InputError(
                f"speed.teacher_precision: the {who}'s {said} of {where}, less than "
                f"speed.min_agreement={self.speed.min_agreement:g}; say speed.teacher_precision=32"
            )
        return f"{who}: {self.how[name]}; {said} of {where}"

    def _unlike(self, who: str, seen: str, frozen: Frozen, images: Tensor, plain: Tensor) -> str:
        """What to do about a faster teacher that answers otherwise: leave out what makes it faster, one by one."""
        again = frozen.reference_logits(images).float()
        if not torch.allclose(plain, again, rtol=CLOSE, atol=CLOSE):
            return f"the {who} gives other logits for the same images at each call, in eval mode too: mend its forward"
        switches = {"fold": self.speed.fold, "channels_last": self.speed.channels_last, "compile": self.speed.compile}
        left = next((name for name, on in switches.items() if on), None)
        if left is None:
            return f"the {who}'s {seen}, more than rounding; set teacher.cache=off, and report this with the network"
        return f"speed.{left}: the {who}'s {seen}, more than rounding; set speed.{left}=false"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        device, data = trainer.strategy.root_device, data_of(trainer)
        for cached in teachers(pl_module.teacher, Cached).values():
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
            for network in (pl_module.student, *(f.runner for f in teachers(pl_module.teacher).values())):
                network._compiled_call_impl = None
            torch.compiler.set_stance("default")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]  # the dictionary itself stays, as it carries torch's metadata
        state.update({k: v.contiguous() for k, v in state.items() if isinstance(v, Tensor)})


def bf16_on_cpu() -> bool:
    """Whether this processor has instructions for bfloat16; without them its layers take longer than in float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def teachers(teacher: Any, kind: type = Frozen) -> dict[str, Any]:
    """The frozen teachers behind a teacher, or the cached ones, by member's name."""
    known = teacher.members if isinstance(teacher, Ensemble) else {"": teacher} if teacher is not None else {}
    if kind is Frozen:
        known = {name: member.frozen if isinstance(member, Cached) else member for name, member in known.items()}
    return {name: member for name, member in known.items() if isinstance(member, kind)}
