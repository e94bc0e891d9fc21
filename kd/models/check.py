"""Adapts a custom network and tries it on two images; each problem is one line with a suggestion."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kd.errors import InputError, with_key
from kd.models.normalized import Normalized, unwrap
from kd.models.outputs import OutputError, described, logits_of, tensors_of

log = logging.getLogger(__name__)

# what a forward pass raises on wrong input
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
SIZES = (224, 299, 256, 384, 32, 28, 64, 96, 128, 512)  # usual image sizes in pixels, most common first
CHANNELS = (3, 1)
CLOSE = 1e-3  # of the largest logit: rounding is far below


@contextmanager
def quietly() -> Iterator[None]:
    """Suppresses log messages while objects are built a second time."""
    logger = logging.getLogger("kd")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def copied(network: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        InputError: it contains objects that cannot be copied.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # custom objects may raise anything
        raise InputError(f"{type(unwrap(network)).__name__} cannot be copied ({_line(error)})") from error


def usable(network: nn.Module, key: str, shape: Sequence[int]) -> nn.Module:
    """The network in float32, without wrappers that kd has options for, with lazy parameters initialised.

    Raises:
        InputError: lazy parameters that cannot be initialised for these images.
    """
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        log.info("%s: %s is removed; trainer.devices sets the number of processes", key, type(network).__name__)
        network = network.module
    if (inner := getattr(network, "_orig_mod", None)) is not None:
        log.info("%s: torch.compile is removed; set speed.compile=true to compile", key)
        network = inner
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        with untouched(network, buffers=False), torch.no_grad():
            try:
                network.eval()(torch.zeros(2, *shape))
            except FORWARD_ERRORS as error:
                raise InputError(
                    f"{key}: its lazy layers cannot be initialised for images {list(shape)}: {_line(error)}"
                ) from error
    kinds = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        log.info("%s: parameters in %s are converted to float32; see trainer.precision", key, kinds.pop())
        network.float()
    return network


@contextmanager
def untouched(network: nn.Module, buffers: bool = True) -> Iterator[None]:
    """Restores a network's modes and buffers and the random number generators on exit."""
    from pytorch_lightning.utilities.seed import isolate_rng

    modes = [(module, module.training) for module in network.modules()]
    saved = [
        (module, name, tensor, tensor.clone())
        for module in network.modules()
        for name, tensor in module._buffers.items()
        if buffers and tensor is not None
    ]
    with isolate_rng(include_cuda=False):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, tensor, before in saved:
                tensor.copy_(before)
                module._buffers[name] = tensor


def check(network: Normalized, key: str, name: str, shape: Sequence[int], classes: int, frozen: bool) -> None:
    """Tries a network, in eval mode, on images of ``shape`` [C, H, W].

    Args:
        network: is not changed.
        key: its key in the configuration, for messages.
        name: its name in messages.
        shape: of one image.
        classes: the number of logits expected.
        frozen: whether it is a frozen teacher, which must be deterministic.

    Raises:
        InputError: it does not accept such images, returns no logits, drops the batch dimension of one image, or, if
            ``frozen``, returns different logits for the same images.
    """
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with untouched(network), torch.no_grad():
        network.eval()
        with explained(network, key, name, shape, classes):
            first, again, single = network(images), network(images), network(images[:1])
        network.output = _main(network, images, first, key)
    if not first.ndim or single.shape != (1, *first.shape[1:]):
        shapes = f"{list(first.shape)} for two images, {list(single.shape)} for one"
        raise InputError(f"{key}: {name} returns {shapes}: keep the batch dimension, which squeeze() removes")
    if not alike(first, again):
        problem = f"{key}: {name} returns different logits for the same images on each call, even in eval mode"
        fix = "make forward() deterministic in eval mode (is there F.dropout without training=self.training?)"
        if frozen:
            raise InputError(f"{problem}: {fix}; a frozen teacher must be deterministic")
        log.warning("%s, so validation is not repeatable: %s", problem, fix)
    elif not alike(first[:1], single):
        log.warning("%s: the logits of %s for an image depend on its batch, even in eval mode", key, name)
    if first.ndim == 2 and first.shape[1] > 1 and (first >= 0).all() and alike(first.sum(1), torch.ones(2)):
        log.warning("%s: %s returns probabilities, not logits: remove its softmax, as losses apply one", key, name)


def _main(network: Normalized, images: Tensor, logits: Tensor, key: str) -> str | int | None:
    """The main output of a network that returns several tensors in training mode, as with auxiliary heads.

    It is the one that equals the ``logits`` of eval mode while only leaf modules, such as dropout and batch norms, stay
    in eval mode. If the network's output is configured, that is used, with a warning if it is another one.
    """
    for module in network.modules():
        module.training = any(True for _ in module.children())
    try:
        result = network.net(network.pixels(images))
        logits_of(result)
    except OutputError:
        heads = tensors_of(result)
        same = [n for n, t in heads.items() if t.shape == logits.shape and alike(t, logits)]
        if network.output is not None:
            if same and str(network.output) in heads.keys() - same:
                words = f"{key}.output={network.output} trains another head than eval mode returns, which is {same[0]}"
                log.warning("%s: validation and the finished student use that one", words)
        elif len(same) == 1:
            log.info("%s: returns %s in training mode; %s.output=%s is used", key, described(result), key, same[0])
            return same[0]
    except Exception as error:  # reported by the dry run in training mode
        log.debug("%s: %s", key, error)
    return network.output


@contextmanager
def explained(network: Normalized, key: str, name: str, shape: Sequence[int], classes: int) -> Iterator[None]:
    """Reports in one line why a network does not run on images of a shape, with a suggestion."""
    try:
        yield
    except OutputError as error:
        raise InputError(f"{key}: {error.question(f'{key}.output', classes)}") from error
    except InputError as error:
        raise with_key(key, error) from error
    except FORWARD_ERRORS as error:
        if "memory" in str(error):
            raise
        image = [shape[0], network.size, network.size] if network.size else list(shape)
        message = f"{key}: {name} does not take images {image} ({_line(error)})"
        raise InputError(f"{message}{_suggestion(network, key, shape, error)}") from error


def _suggestion(network: Normalized, key: str, shape: Sequence[int], error: BaseException) -> str:
    text = str(error)
    if isinstance(error, TypeError) and "forward()" in text:
        return (
            "; kd calls it with the images only: give other parameters defaults, or wrap it in a module that sets them"
        )
    if "more than 1 value per channel" in text:
        return "; its batch norms need more or larger images: increase data.batch_size"
    present = shape[0]
    for channels, size in itertools.product((present, *CHANNELS), (None, *SIZES)):
        side = shape[1:] if size is None else (size, size)
        if (channels, tuple(side)) != (present, tuple(shape[1:])) and _runs(unwrap(network), (channels, *side)):
            resized = f"{key}.size={size}" if size is not None else ""
            if channels == present:
                return f"; it accepts {size} pixels: set {resized}"
            parameter = "give its function a parameter `channels`, which kd sets"
            return f"; it accepts {channels} channels: {parameter}{f', and set {resized}' if resized else ''}"
    return ""


@torch.no_grad()
def _runs(network: nn.Module, shape: Sequence[int]) -> bool:
    with untouched(network):
        try:
            for training in (True, False):
                network.train(training)(torch.zeros(2, *shape))
        except Exception:  # the reason does not matter here
            return False
    return True


def alike(one: Tensor, other: Tensor) -> bool:
    most = one.detach().nan_to_num(0, 0, 0).abs().max().clamp(min=1e-6)
    return torch.allclose(one, other, rtol=0, atol=CLOSE * float(most), equal_nan=True)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
