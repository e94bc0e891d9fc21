"""Names of layers that work for every network: ``stages``, ``stage-1``, ``stages[:-1]``, ``stages.pre``.

A network of the zoo defines these names in its attribute ``aliases``. The stages of any other are detected with one
example: a stage consists of the layers of one resolution, up to the layer before the next reduction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.models.normalized import Normalized, unwrap

ALL = re.compile(r"(?:.*/)?stages(?:\[(-?\d*):(-?\d*)\])?(\.pre)?")
LAST = re.compile(r"(?:.*/)?stage-(\d+)(\.pre)?")
WORD = re.compile(r"stem|last|logit_map|stage\d+(\.pre)?")
SIZES = (64, 128, 224, 299, 384, 32, 28)  # image sizes to try, if the network does not define its own
MOST = 4  # stages of a convolutional network
PARTS = 3  # stages of a network of equal blocks, as of the zoo's transformers
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
IDLE = (nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def is_many(layer: str) -> bool:
    """Whether a name stands for several layers: ``stages``, ``stages.pre`` or a slice of them."""
    return ALL.fullmatch(layer) is not None


def spelled(layer: str, tapped: Mapping[str, Tensor]) -> list[str]:
    """The keys of a layer in ``tapped``: itself, or those of a name for several layers, shallow to deep."""
    if not is_many(layer):
        return [layer]
    return [f"{layer}[{k}]" for k in range(1, len(tapped) + 1) if f"{layer}[{k}]" in tapped]


def taps_of(network: nn.Module, layers: Sequence[str], aliases: dict[str, str]) -> dict[str, str]:
    """Where to tap: the key of each tensor, and the module's name with its suffixes.

    Args:
        network: with or without its normalisation.
        layers: names of modules, aliases or the names of this file.
        aliases: the network's; detected ones are added.

    Raises:
        InputError: a name for stages, and the network has no or too few stages.
    """
    modules = dict(unwrap(network).named_modules())
    for layer in layers:
        by_word = is_many(layer) or LAST.fullmatch(layer) or (WORD.fullmatch(layer) and layer not in modules)
        if by_word and layer not in aliases and "stage1" not in aliases:
            aliases |= measured(network)
    taps: dict[str, str] = {}
    for layer in layers:
        if is_many(layer):
            taps |= {f"{layer}[{k}]": aliases[name] for k, name in enumerate(_stages(network, layer, aliases), 1)}
        elif LAST.fullmatch(layer):
            taps[layer] = aliases[_stages(network, layer, aliases)[0]]
        else:
            taps[layer] = aliases.get(layer, layer)
    return taps


def _stages(network: nn.Module, word: str, aliases: Mapping[str, str]) -> list[str]:
    """The aliases that a name for stages stands for; a stage without an activation at its end is its own ``.pre``."""
    count = sum(re.fullmatch(r"stage\d+", name) is not None for name in aliases)
    numbers = list(range(1, count + 1))
    if single := LAST.fullmatch(word):
        back, before = int(single[1]), single[2]
        picked = numbers[-back : count - back + 1] if 0 < back <= count else []
    else:
        match = ALL.fullmatch(word)
        assert match is not None
        first, end, before = match.groups()
        picked = numbers[int(first) if first else None : int(end) if end else None]
    if not picked:
        raise InputError(f"layer {word!r}: {type(unwrap(network)).__name__} has {count} stages")
    names = [f"stage{k}" for k in picked]
    return [f"{name}.pre" if before and f"{name}.pre" in aliases else name for name in names]


def measured(network: nn.Module) -> dict[str, str]:
    """Detects ``stem``, ``stage1``, ``stage1.pre``, ..., ``last`` and ``logit_map`` of a network without aliases.

    They are stored as the network's ``aliases``, so that copies of it have the same.

    Raises:
        InputError: no example can be run, or the network has neither maps nor a sequence of equal blocks.
    """
    inner, calls = unwrap(network), _traced(network)
    images = calls.pop("")
    trunk = [name for name in _trunk(inner, "", calls, images) if calls[name].ndim == 4]
    levels: dict[int, list[str]] = {}
    for name in trunk:
        levels.setdefault(_resolution(calls[name]), []).append(name)
    parametric = [
        [name for name in names if not isinstance(inner.get_submodule(name), IDLE)]
        for size, names in levels.items()
        if size > 1 and any(_parametric(inner.get_submodule(name)) for name in names)
    ]
    row = _row(inner, calls)
    order = list(calls)
    if len(row) >= PARTS and not (len(parametric) > 1 and order.index(row[-1]) < order.index(parametric[-1][-1])):
        prefix = f"{row[0].rpartition('.')[0]}."
        words = _thirds(row, [name for name in trunk if not name.startswith(prefix)])
    elif len(parametric) > 1:
        words = _levels(inner, parametric, calls)
    else:
        raise InputError(f"{type(inner).__name__} has no stages that can be detected; name its layers")
    inner.aliases = {**getattr(inner, "aliases", {}), **words}  # type: ignore[assignment]
    return words


def _levels(inner: nn.Module, levels: list[list[str]], calls: Mapping[str, Tensor]) -> dict[str, str]:
    """The aliases of a convolutional network: its stages are the last four resolutions, without a stem of one layer."""
    last = levels[-1][-1]
    levels = [*levels[:-1], _without_head(inner, levels[-1])]
    layers = [layer for name in levels[0] for layer in _parametric(inner.get_submodule(name), nn.Conv2d, nn.Linear)]
    first = max(len(levels) - MOST, int(len(levels) > 3 and len(layers) == 1))
    blocks = [k for k, name in enumerate(levels[0]) if len(_parametric(inner.get_submodule(name))) > 1]
    stem = levels[first - 1][-1] if first else levels[0][max((blocks or [0])[0] - 1, 0)]
    stages = [names[-1] for names in levels[first:]]
    words = {"stem": _tap(stem, calls)}
    words |= {f"stage{k}": _tap(name, calls) for k, name in enumerate(stages, 1)}
    before = {f"stage{k}.pre": _before(inner, name, calls) for k, name in enumerate(stages, 1)}
    words |= {name: tap for name, tap in before.items() if tap is not None} | {"last": _tap(last, calls)}
    linear = [(name, module) for name, module in inner.named_modules() if isinstance(module, nn.Linear)]
    if linear and linear[-1][1].in_features == calls[last].shape[-1 if _last(calls[last]) else 1]:
        words["logit_map"] = f"{_tap(last, calls)}@{linear[-1][0]}"
    return words


def _thirds(row: Sequence[str], before: Sequence[str]) -> dict[str, str]:
    """The aliases of a transformer: its blocks after a third, two thirds and all of a sequence of equal ones."""
    words = {f"stage{k}": row[max(k * len(row) // PARTS, 1) - 1] for k in range(1, PARTS + 1)}
    return {"stem": before[-1] if before else row[0], **words, "last": row[-1]}


def _traced(network: nn.Module) -> dict[str, Tensor]:
    """The last output of each module that ran, if it is a tensor, in the order in which they finished."""
    inner = unwrap(network)
    first = next((module for module in inner.modules() if isinstance(module, nn.Conv2d)), None)
    stated = [network.size] if isinstance(network, Normalized) and network.size else []
    sizes = [getattr(inner, "image_size", None), getattr(getattr(inner, "patch_embed", None), "img_size", None)]
    stated += [size if isinstance(size, int) else size[0] for size in sizes if isinstance(size, (int, tuple)) and size]
    for size in [*stated, *SIZES]:
        if first is None:
            break
        calls: dict[str, Tensor] = {}
        with _watched(inner, calls), torch.no_grad():
            try:
                images = torch.rand(2, first.in_channels, size, size).to(first.weight)
                inner(images)
                return {"": images, **calls}
            except (RuntimeError, ValueError, AssertionError, TypeError, InputError):
                continue  # not a size for this network
    raise InputError(f"the stages of {type(inner).__name__} cannot be detected; name its layers")


@contextmanager
def _watched(inner: nn.Module, calls: dict[str, Tensor]) -> Iterator[None]:
    modes = {module: module.training for module in inner.modules()}
    inplace = [module for module in inner.modules() if getattr(module, "inplace", False) is True]
    state = torch.get_rng_state()

    def store(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            calls.pop(name, None)
            calls[name] = output

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: store(name, output))
        for name, module in inner.named_modules()
        if name
    ]
    try:
        inner.eval()
        for module in inplace:
            module.inplace = False  # type: ignore[assignment]
        yield
    finally:
        torch.set_rng_state(state)
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
        for module in inplace:
            module.inplace = True  # type: ignore[assignment]


def _trunk(inner: nn.Module, name: str, calls: Mapping[str, Tensor], before: Tensor) -> list[str]:
    """The modules that run one after the other, none of which reduces the resolution more than once."""
    below = [f"{name}.{child}" if name else child for child, _ in inner.get_submodule(name).named_children()]
    order = list(calls)
    runs = [child for group in below for child in _running(inner, group, calls)]
    names: list[str] = []
    for child in sorted(runs, key=order.index):
        output = calls[child]
        once = output.ndim == 4 and 2 * _resolution(output) >= _resolution(before)
        inside = any(other.startswith(f"{child}.") for other in calls)
        if inside and not once:
            names += _trunk(inner, child, calls, before)
        else:
            names.append(child)
        before = output if output.ndim == 4 else before
    return names


def _running(inner: nn.Module, name: str, calls: Mapping[str, Tensor]) -> list[str]:
    """The module, or the members of a container that ran."""
    if name in calls:
        return [name]
    below = [f"{name}.{child}" for child, _ in inner.get_submodule(name).named_children()]
    return [member for child in below for member in _running(inner, child, calls)]


def _row(inner: nn.Module, calls: Mapping[str, Tensor]) -> list[str]:
    """The longest sequence of equal sibling modules that return tokens [B, N, C]."""
    rows: dict[tuple[str, type], list[str]] = {}
    for name, output in calls.items():
        if output.ndim == 3 and (module := inner.get_submodule(name)) and _parametric(module):
            rows.setdefault((name.rpartition(".")[0], type(module)), []).append(name)
    return max(rows.values(), key=len, default=[])


def _without_head(inner: nn.Module, names: list[str]) -> list[str]:
    """The last level without a pointwise convolution or a norm that only prepares the classifier.

    It ends with the last block; or, if there are only plain layers, with those after the last convolution.
    """
    ends = [k for k, name in enumerate(names) if not _prepares(inner.get_submodule(name))]
    if not ends:
        return names
    end = ends[-1] + 1
    if not any(inner.get_submodule(names[end - 1]).children()):
        while end < len(names) and not _parametric(inner.get_submodule(names[end]), nn.Conv2d):
            end += 1
    return names[:end]


def _prepares(module: nn.Module) -> bool:
    """Whether it contains no more than one pointwise convolution and norms."""
    convolutions = _parametric(module, nn.Conv2d)
    return (
        len(convolutions) < 2
        and not _parametric(module, nn.Linear)
        and all(conv.kernel_size == (1, 1) for conv in convolutions)
    )


def _parametric(module: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    """The modules with parameters of their own, of these kinds if any are given."""
    parts = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return [part for part in parts if not kinds or isinstance(part, kinds)]


def _before(inner: nn.Module, name: str, calls: Mapping[str, Tensor]) -> str | None:
    """The input of the activation at the end of a stage, or None."""
    for inside, module in inner.get_submodule(name).named_modules(prefix=name):
        same = calls.get(inside) is calls[name]
        if same and not any(module.children()) and type(module).__module__.startswith(ACTIVATIONS):
            return f"{inside}:in"
    return None


def _resolution(output: Tensor) -> int:
    return output.shape[2] if output.shape[2] == output.shape[3] or not _last(output) else output.shape[1]


def _last(output: Tensor) -> bool:
    """Whether the channels are the last dimension, as in Swin: the example is square, and so are its maps."""
    return output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3]


def _tap(name: str, calls: Mapping[str, Tensor]) -> str:
    return f"{name}:nhwc" if _last(calls[name]) else name
