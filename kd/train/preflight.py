"""Tries everything that the end of a run needs at its start, so that no run fails after a day of training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from safetensors.torch import load
from torch import Tensor, nn

from kd.data.adapt import Adapter
from kd.data.datamodule import ImageData
from kd.distill.distiller import Distiller
from kd.distill.metrics import Scores
from kd.distill.spec import TeacherSpec, without_weights
from kd.errors import InputError, located
from kd.models.check import FORWARD_ERRORS, alike, copied, explained, quietly, untouched
from kd.models.cost import size_of
from kd.models.names import title_of
from kd.models.normalized import Normalized, unwrap
from kd.models.weight_files import Weights
from kd.models.weights import fill, fingerprint, serialised
from kd.run_folder import predictor
from kd.train import assemble

Config = Mapping[str, Any]
IMAGES = 2  # in each trial batch


def preflight(config: Config, data: ImageData, distiller: Distiller, trainer: pl.Trainer | None = None) -> None:
    """Tries on two images what a run does; takes about as long as four training steps of that batch size.

    Every trained network runs forward and backward in training mode; the student's weights are written, loaded into a
    new network and compared, and so are those of a predictor; the multiply-accumulates are counted; one validation and
    one test batch are evaluated. The distiller and the state of the random generators are unchanged afterwards.

    Raises:
        InputError: a step fails; the message has the cause and the remedy.
    """
    who = title_of(config["student"])
    with untouched(distiller):
        for at, name, network in _trained(config, distiller):
            _trains(network, at, name, data, distiller)
        with quietly():
            fresh = assemble.untried(without_weights(config["student"], "student"), "student", data)
        _returns(distiller.student, fresh, who)
        _agrees(distiller.student, fresh, who, data.shape)
        with _proven(f"student: the multiply-accumulates of {who} cannot be counted"):
            size_of(distiller.student, list(data.shape))
        if config["callbacks"].get("ema"):
            with located("callbacks.ema"):
                copied(distiller.student)
        _predicts(config, distiller, fresh, list(data.shape))
        with _proven("the configuration cannot be written", "use plain numbers, strings, lists and dictionaries"):
            json.dumps(config)
        for part in ("val", "test"):
            _measures(part, data, distiller, trainer)


@contextmanager
def _proven(what: str, mend: str = "") -> Iterator[None]:
    """Turns an exception into a one-line InputError, unless it has a one-line message already."""
    try:
        yield
    except FORWARD_ERRORS as error:
        from kd.process.classify import classify

        if classify(error)[1] is not None:
            raise
        line = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(f"{what} ({type(error).__name__}: {line}){f'; {mend}' if mend else ''}") from error


def _trained(config: Config, distiller: Distiller) -> list[tuple[str, str, nn.Module]]:
    """The networks that are trained, as (key, title, module): the student, and its peers in mutual learning."""
    spec = TeacherSpec.parse(config["teacher"])
    peers = spec.members if "peers" in spec.node else ()
    networks = distiller.teacher.networks() if peers and distiller.teacher is not None else {}
    others = [(peer.key, title_of(peer.node), networks[peer.name]) for peer in peers]
    return [("student", title_of(config["student"]), distiller.student), *others]


def _trains(network: nn.Module, at: str, who: str, data: ImageData, distiller: Distiller) -> None:
    """One forward and backward pass in training mode, in which a network's output may differ from that in eval mode."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trainable and distiller.objective.predictor is None:
        some = next(network.parameters(), None) is not None
        why = "all parameters are frozen (requires_grad=False)" if some else "there are no parameters"
        raise InputError(f"{at}: {who} has nothing to train: {why}")
    count = min(IMAGES, data.batch_size or IMAGES)
    images = torch.rand(count, *data.shape, generator=torch.Generator().manual_seed(0))
    network.train()
    assert isinstance(network, Normalized)
    with torch.enable_grad(), explained(network, at, who, data.shape, distiller.classes):
        output = network(images)
    distiller.check_output(f"{at}, in training,", torch.cat([output] * IMAGES)[:IMAGES].detach(), distiller.classes)
    if trainable and not output.requires_grad:
        raise InputError(
            f"{at}: {who} has nothing to train: its logits depend on no trainable parameter; "
            "is its forward under no_grad, or does it detach them?"
        )
    with _proven(f"{at}: {who} cannot be trained", "no gradient flows back through its forward"):
        gradients = (
            torch.autograd.grad(output.float().square().sum(), trainable, allow_unused=True) if trainable else ()
        )
    del gradients
    network.eval()


def _returns(student: nn.Module, fresh: Normalized, who: str) -> None:
    """Checks that the student's weights are the same after they are written and loaded into a new network."""
    state = unwrap(student).state_dict()
    if invalid := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(
            f"student: {who} has {invalid[0]!r}, a {type(state[invalid[0]]).__name__}, in its state dict, but only "
            "tensors can be saved: make it a tensor, or leave it out of get_extra_state"
        )
    with _proven(f"student: the weights of {who} cannot be written and read back"):
        fill(unwrap(fresh), Weights(load(serialised(state))), f"student: the saved state dict of {who}")
    if fingerprint(unwrap(fresh)) != fingerprint(unwrap(student)):
        raise InputError(f"student: the weights of {who} change when written and read back: see its load_state_dict")


@torch.no_grad()
def _agrees(student: nn.Module, fresh: Normalized, who: str, shape: Sequence[int]) -> None:
    """Checks that a new network with the same weights has the same logits."""
    images = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    assert isinstance(student, Normalized)
    fresh.mean, fresh.std = student.mean, student.std  # these four are saved in the run folder
    fresh.size, fresh.output = student.size, student.output
    fresh.eval()
    first, again = student.eval()(images), student(images)
    if alike(first, again) and not alike(first, fresh(images)):
        raise InputError(
            f"student: {who} has other logits when it is rebuilt with the same weights: it draws or counts "
            "numbers that are not in its state dict; store them with register_buffer(name, tensor)"
        )


def _predicts(config: Config, distiller: Distiller, fresh: Normalized, shape: list[int]) -> None:
    """Checks that the predictor, the term whose loss replaces the student's output, can be written and read back."""
    term = distiller.objective.predictor
    described = predictor.describe(distiller.objective, config["objective"])
    if term is None or described is None:
        return
    what = f"objective.{described['term']}: the predictor cannot be written and read back"
    with _proven(what), tempfile.TemporaryDirectory() as folder:
        predictor.keep(term, Path(folder))
        predictor.restore(fresh, described, shape, Path(folder), trust=True)


def _measures(part: str, data: ImageData, distiller: Distiller, trainer: pl.Trainer | None) -> None:
    """Evaluates both networks and all scores on the first images of a part."""
    mend = "every part must yield (images [B, C, H, W], labels [B])"
    with _proven(f"data: the first {part} batch cannot be evaluated", mend), torch.no_grad():
        raw = _first(part, data, trainer)
        if raw is None:
            return
        with quietly():
            batch = Adapter(distiller.classes, data.shape, data.names)(raw, part)
        batch = batch.each(lambda tensor: tensor[:IMAGES])
        distiller.student.eval()
        if not distiller.classifies:
            distiller.student(batch.images)
            return
        teacher = None if distiller.teacher is None else distiller.teacher(batch)[""]
        Scores(distiller.classes, teacher is not None).update(distiller(batch.images), batch.labels, teacher)


def _first(part: str, data: ImageData, trainer: pl.Trainer | None) -> Any:
    """The first batch of a part, in the structure that its loader yields.

    None for a custom data module without that part, or on several processes, which would all prepare its data at once.
    """
    if (batch := data.first_batch(part)) is not None:
        return batch
    if trainer is not None and trainer.world_size > 1:
        return None
    if not is_overridden(f"{part}_dataloader", data.lightning):
        return None
    data.trainer = data.trainer or trainer
    data.prepare_data()
    data.setup("test" if part == "test" else "fit")
    loader = data.test_dataloader() if part == "test" else data.val_dataloader()
    if loader is None or (isinstance(loader, (list, tuple)) and not loader):
        raise InputError(f"{part}_dataloader returns no loader: leave the method out if there is no such part")
    raw = next(iter(loader[0] if isinstance(loader, (list, tuple)) else loader))
    return data.on_after_batch_transfer(raw, 0)
