"""Per-sample transforms: torchvision's, by name, with the generator seeded for each sample."""

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
    """The transform for the option ``data.transform``.

    Args:
        spec: a lower-case name of ``torchvision.transforms.v2`` (``randaugment``), ``autoaugment_cifar10`` and the
            like; a node with ``_target_`` and arguments; a list of these, applied in order; or a callable from
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
        raise InputError(f"data.transform={name} needs arguments: set data.transform={target}; {error}") from error


@contextmanager
def seeds_kept() -> Iterator[torch.Generator]:
    """torch's CPU generator, which may be seeded; its state is restored afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)


class PerSample:
    """Applies a transform to each image of a batch on the CPU, with torch's generator seeded for each.

    Args:
        spec: see :func:`transform_of`.
        shape: [C, H, W], which the transform must keep.

    Raises:
        InputError: the transform cannot be built, fails on an image, or changes its shape or dtype.
    """

    def __init__(self, spec: Any, shape: Sequence[int]) -> None:
        self.transform = transform_of(spec)
        try:
            example = self(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
        except InputError:
            raise
        except Exception as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"data.transform={spec} fails on images {list(shape)}: {line}") from error
        if example.dtype != torch.uint8 or list(example.shape[1:]) != list(shape):
            output = f"{example.dtype} {list(example.shape[1:])}"
            raise InputError(f"data.transform={spec} must keep uint8 images {list(shape)}, returns {output}")

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, C, H, W] as uint8, each transformed from its own seed [B]."""
        transformed = []
        with seeds_kept() as generator:
            for image, seed in zip(images.cpu(), seeds.tolist()):
                generator.manual_seed(seed)
                transformed.append(self.transform(image))
        return torch.stack(transformed).to(images.device)

    def describe(self) -> list[Any]:
        """The transform with all its options, and torchvision's version, in plain containers."""
        return ["torchvision", torchvision.__version__, described(self.transform)]


def described(transform: Any) -> Any:
    """A transform in plain containers: classes with their options, and the source code of custom ones."""
    if isinstance(transform, (list, tuple)):
        return [described(part) for part in transform]
    if not (callable(transform) or isinstance(transform, nn.Module)) or inspect.isclass(transform):
        return transform if isinstance(transform, (bool, int, float, str, type(None))) else repr(transform)
    code = transform if inspect.isroutine(transform) else type(transform)
    description: dict[str, Any] = {"name": f"{code.__module__}.{code.__qualname__}"}
    if not code.__module__.startswith(("torchvision.", "torch.")):
        description["source"] = _source(code)
    if not inspect.isroutine(transform):
        hidden = vars(nn.Module()) if isinstance(transform, nn.Module) else {}
        options = {key: value for key, value in vars(transform).items() if key not in hidden}
        description |= {key: described(value) for key, value in sorted(options.items())}
        if isinstance(transform, nn.Module):
            description |= {key: described(part) for key, part in transform.named_children()}
    return description


def _source(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return repr(code)
