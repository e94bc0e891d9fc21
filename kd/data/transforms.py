"""Transforms that run sample by sample: torchvision's, by name, with a generator seeded for each sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import AutoAugmentPolicy, v2

from kd.errors import InputError, unknown
from kd.registry import build

Transform = Callable[[Tensor], Tensor]

NAMED: dict[str, Any] = {
    name.lower(): entry
    for name, entry in vars(v2).items()
    if inspect.isclass(entry) and issubclass(entry, v2.Transform) and name not in ("Transform", "MixUp", "CutMix")
}
POLICIES = {f"autoaugment_{policy.value}": policy for policy in AutoAugmentPolicy}


def transform_of(spec: Any) -> Transform:
    """A transform from what an option says.

    Args:
        spec: a name of ``torchvision.transforms.v2`` in small letters (``randaugment``), ``autoaugment_cifar10``
            and its like; a node with ``_target_`` and arguments; a list of these, run in turn; or a callable from
            an image [C, H, W] to another.

    Raises:
        InputError: an unknown name, or arguments that are missing or wrong.
    """
    if isinstance(spec, str):
        return _named(spec)
    if isinstance(spec, Mapping):
        return build(spec, "data.transform")
    if callable(spec):
        return spec
    if isinstance(spec, Sequence) and spec:
        return v2.Compose([transform_of(part) for part in spec])
    raise InputError(f"data.transform must be a name, a node with _target_ or a list of these, got {spec!r}")


def _named(name: str) -> Transform:
    if name in POLICIES:
        return v2.AutoAugment(POLICIES[name])
    if name not in NAMED:
        raise unknown("transform", name, [*NAMED, *POLICIES])
    try:
        return NAMED[name]()
    except TypeError as error:
        target = f"{{_target_: torchvision.transforms.v2.{NAMED[name].__name__}, ...}}"
        raise InputError(f"data.transform={name} needs arguments: write {target}; {error}") from error


@contextmanager
def seeds_kept() -> Iterator[torch.Generator]:
    """torch's CPU generator, to be seeded at will; it goes on afterwards as if nothing had been."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)


class PerSample:
    """Runs a transform on each image of a batch with torch's generator seeded for it, on the CPU.

    Args:
        spec: see :func:`transform_of`.
        shape: [C, H, W], which the transform must keep.

    Raises:
        InputError: the transform cannot be made, fails on such an image, or changes its shape or type.
    """

    def __init__(self, spec: Any, shape: Sequence[int]) -> None:
        self.transform = transform_of(spec)
        try:
            found = self(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
        except InputError:
            raise
        except Exception as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"data.transform={spec} fails on images {list(shape)}: {line}") from error
        if found.dtype != torch.uint8 or list(found.shape[1:]) != list(shape):
            made = f"{found.dtype} {list(found.shape[1:])}"
            raise InputError(f"data.transform={spec} must keep uint8 images {list(shape)}, gives {made}")

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, C, H, W] as uint8, each transformed from its own seed [B]."""
        done = []
        with seeds_kept() as generator:
            for image, seed in zip(images.cpu(), seeds.tolist()):
                generator.manual_seed(seed)
                done.append(self.transform(image))
        return torch.stack(done).to(images.device)

    def describe(self) -> list[Any]:
        """The transform with all its options, and torchvision's version, in plain containers."""
        return ["torchvision", torchvision.__version__, described(self.transform)]


def described(thing: Any) -> Any:
    """A transform in plain containers: classes with their options, and the source of what is not torchvision's."""
    if isinstance(thing, (list, tuple)):
        return [described(part) for part in thing]
    if not (callable(thing) or isinstance(thing, nn.Module)) or inspect.isclass(thing):
        return thing if isinstance(thing, (bool, int, float, str, type(None))) else repr(thing)
    kind = thing if inspect.isroutine(thing) else type(thing)
    about: dict[str, Any] = {"name": f"{kind.__module__}.{kind.__qualname__}"}
    if not kind.__module__.startswith(("torchvision.", "torch.")):
        about["source"] = _source(kind)
    if not inspect.isroutine(thing):
        hidden = vars(nn.Module()) if isinstance(thing, nn.Module) else {}
        options = {key: value for key, value in vars(thing).items() if key not in hidden}
        about |= {key: described(value) for key, value in sorted(options.items())}
        if isinstance(thing, nn.Module):
            about |= {key: described(part) for key, part in thing.named_children()}
    return about


def _source(kind: Any) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return repr(kind)
