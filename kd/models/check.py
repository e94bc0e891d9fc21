"""A network of anyone's, made usable and tried on two images: what does not fit is said in one line, with a way on."""

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
SIZES = (224, 299, 256, 384, 32, 28, 64, 96, 128, 512)  # pixels for which networks are made, the usual ones first
CHANNELS = (3, 1)
CLOSE = 1e-3  # of the largest logit: rounding is far below


@contextmanager
def quietly() -> Iterator[None]:
    """For what is made a second time: nothing of it is said again."""
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
        InputError: it holds what cannot be copied.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # what a network of anyone's holds may refuse it in any way
        raise InputError(f"{type(unwrap(network)).__name__} cannot be copied ({_line(error)})") from error


def usable(network: nn.Module, at: str, shape: Sequence[int]) -> nn.Module:
    """The network without wrappers that kd has switches for, in float32, with all its parameters.

    Raises:
        InputError: parameters that depend on the images, and a forward pass that cannot make them.
    """
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        log.info("%s: taken out of %s; trainer.devices says how many processes train", at, type(network).__name__)
        network = network.module
    if (inner := getattr(network, "_orig_mod", None)) is not None:
        log.info("%s: taken out of torch.compile; speed.compile=true compiles it", at)
        network = inner
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        with untouched(network, buffers=False), torch.no_grad():
            try:
                network.eval()(torch.zeros(2, *shape))
            except FORWARD_ERRORS as error:
                raise InputError(
                    f"{at}: its lazy layers cannot be made for images {list(shape)}: {_line(error)}"
                ) from error
    kinds = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        log.info("%s: parameters in %s become float32; trainer.precision says how it computes", at, kinds.pop())
        network.float()
    return network


@contextmanager
def untouched(network: nn.Module, buffers: bool = True) -> Iterator[None]:
    """Gives a network back its modes and buffers, and everyone the random numbers, as they were before."""
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


def check(network: Normalized, at: str, who: str, shape: Sequence[int], classes: int, frozen: bool) -> None:
    """Tries a network, in eval mode, on images of ``shape`` [C, H, W].

    Args:
        network: is left as it is.
        at: its place in the configuration, for messages.
        who: what it is called there.
        shape: of one image.
        classes: how many logits it is to give.
        frozen: whether its answers are to be relied on as they are, as a teacher's.

    Raises:
        InputError: it does not take such images, gives no logits, loses the batch of one image, or, where ``frozen``,
            answers the same images otherwise a second time.
    """
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with untouched(network), torch.no_grad():
        network.eval()
        with explained(network, at, who, shape, classes):
            first, again, single = network(images), network(images), network(images[:1])
        network.output = _main(network, images, first, at)
    if not first.ndim or single.shape != (1, *first.shape[1:]):
        shapes = f"{list(first.shape)} for two images, {list(single.shape)} for one"
        raise InputError(f"{at}: {who} gives {shapes}: keep the dimension of the batch, which squeeze() takes away")
    if not alike(first, again):
        said = f"{at}: {who} gives other logits for the same images at each call, in eval mode too"
        mend = (
            "its forward draws random numbers (F.dropout without training=self.training?), which must be mended there"
        )
        if frozen:
            raise InputError(f"{said}: {mend}; a frozen teacher's answers may not change, and no option allows it")
        log.warning("%s, so that no validation repeats: %s", said, mend)
    elif not alike(first[:1], single):
        log.warning("%s: %s gives an image other logits beside other images, in eval mode too", at, who)
    if first.ndim == 2 and first.shape[1] > 1 and (first >= 0).all() and alike(first.sum(1), torch.ones(2)):
        log.warning("%s: %s gives probabilities, not logits; losses apply softmax, so take it off its end", at, who)


def _main(network: Normalized, images: Tensor, logits: Tensor, at: str) -> str | int | None:
    """The entry that is the main one of what a network gives in training mode, where auxiliary heads answer too.

    It is the one that equals the ``logits`` of eval mode while only the layers, which dropout and batch norms are, stay
    in eval mode. Where the network's output is chosen it stays, and a word is said if it is not that one.
    """
    for module in network.modules():
        module.training = any(True for _ in module.children())
    try:
        answer = network.net(network.pixels(images))
        logits_of(answer)
    except OutputError:
        heads = tensors_of(answer)
        same = [n for n, t in heads.items() if t.shape == logits.shape and alike(t, logits)]
        if network.output is not None:
            if same and str(network.output) in heads.keys() - same:
                words = f"{at}.output={network.output} trains another head than eval mode gives, which is {same[0]}"
                log.warning("%s: validation and the finished student are of that one", words)
        elif len(same) == 1:
            log.info("%s: in training gives %s, of which %s.output=%s is taken", at, described(answer), at, same[0])
            return same[0]
    except Exception as error:  # a dry run in training mode says what that is
        log.debug("%s: %s", at, error)
    return network.output


@contextmanager
def explained(network: Normalized, at: str, who: str, shape: Sequence[int], classes: int) -> Iterator[None]:
    """Says in one line why a network does not run on images of a shape, and what would help."""
    try:
        yield
    except OutputError as error:
        raise InputError(f"{at}: {error.asking(f'{at}.output', classes)}") from error
    except InputError as error:
        raise with_key(at, error) from error
    except FORWARD_ERRORS as error:
        if "memory" in str(error):
            raise
        image = [shape[0], network.size, network.size] if network.size else list(shape)
        message = f"{at}: {who} does not take images {image} ({_line(error)})"
        raise InputError(f"{message}{_suggestion(network, at, shape, error)}") from error


def _suggestion(network: Normalized, at: str, shape: Sequence[int], error: BaseException) -> str:
    text = str(error)
    if isinstance(error, TypeError) and "forward()" in text:
        return (
            "; kd calls it with the images alone: give the others defaults, or wrap it in a module that fills them in"
        )
    if "more than 1 value per channel" in text:
        return "; its batch norms need more images, or larger ones: raise data.batch_size"
    present = shape[0]
    for channels, size in itertools.product((present, *CHANNELS), (None, *SIZES)):
        side = shape[1:] if size is None else (size, size)
        if (channels, tuple(side)) != (present, tuple(shape[1:])) and _runs(unwrap(network), (channels, *side)):
            resized = f"{at}.size={size}" if size is not None else ""
            if channels == present:
                return f"; it takes {size} pixels: set {resized}"
            parameter = "give its function a parameter `channels`, which kd fills in"
            return f"; it takes {channels} channels: {parameter}{f', and set {resized}' if resized else ''}"
    return ""


@torch.no_grad()
def _runs(network: nn.Module, shape: Sequence[int]) -> bool:
    with untouched(network):
        try:
            for training in (True, False):
                network.train(training)(torch.zeros(2, *shape))
        except Exception:  # why it does not is of no use here
            return False
    return True


def alike(one: Tensor, other: Tensor) -> bool:
    most = one.detach().nan_to_num(0, 0, 0).abs().max().clamp(min=1e-6)
    return torch.allclose(one, other, rtol=0, atol=CLOSE * float(most), equal_nan=True)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason said').splitlines()[0]}"
