"""Taps: a network's output together with the tensors at named layers, by forward hooks, for any network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd.errors import InputError, unknown
from kd.models.activation_checkpointing import frozen_statistics
from kd.models.check import untouched
from kd.models.normalized import unwrap
from kd.models.stages import taps_of

HEADS = {"class_head": "head", "distillation_head": "head_dist"}


class Taps:
    """Runs ``network`` and returns ``{"": output, "layer3": ..., "fc:in": ...}``.

    ``layers`` are the network's own module names: ``name`` is that layer's output, ``name:in`` its first input,
    ``name:0`` the first of several outputs, ``name:key`` the one under a key or attribute, ``name@linear`` the output
    with the named linear layer applied at every position of the map, which gives a map of logits. ``embedding`` is the
    last linear layer's input. Networks of the zoo also define ``stem``, ``stage1``, ``stage1.pre``, ..., ``last`` and
    ``logit_map`` in their attribute ``aliases``; for other networks these are detected with one example. ``stage-1`` is
    the last stage, ``stages`` all of them and ``stages[:-1]`` all but the last, returned as ``stages[1]``,
    ``stages[2]``, ...; with ``.pre``, before the activation that ends the stage. ``class_head`` and
    ``distillation_head`` are the two heads of a network with a distillation token; for other networks, both are the
    output. ``name:nhwc`` is an output [B, H, W, C] as a map [B, C, H, W]. If a layer runs several times in a forward
    pass, its last run is returned, also if the module is registered under two names. Tensors are kept neither between
    calls nor from other forward passes, such as the recomputation of activation checkpointing.

    Raises:
        InputError: the network has no layer of a name (the message names the nearest), or a layer did not run, ran
            without gradient in a pass that has one, does not output a single tensor, or is overwritten in place by
            other means than a module's ``inplace`` flag.
    """

    def __init__(self, network: nn.Module, layers: Iterable[str] = ()) -> None:
        self.network = network
        self.layers = tuple(dict.fromkeys(layers))
        self._caught = Caught()
        self._linear: dict[str, nn.Linear] = {}
        self._hooks: list[RemovableHandle] = []
        self._outputs: list[str] = []
        self._last: list[str] = []
        self.training_only: set[str] = set()  # layers that evaluation may skip, such as auxiliary heads
        inner = unwrap(network)
        modules = {name: module for name, module in inner.named_modules(remove_duplicate=False) if name}
        classifiers = [name for name, module in inner.named_modules() if isinstance(module, nn.Linear)]
        embedding = {"embedding": f"{classifiers[-1]}:in"} if classifiers else {}
        heads = HEADS if HEADS["distillation_head"] in modules else dict.fromkeys(HEADS, "")
        aliases: dict[str, str] = {**embedding, **heads, **getattr(inner, "aliases", {})}
        taps = taps_of(network, self.layers, aliases)
        self._keys = tuple(taps)
        for layer, tap in taps.items():
            if tap == "":
                self._outputs.append(layer)
                continue
            path, _, linear = tap.partition("@")
            name, _, side = path.partition(":")
            if name not in modules:
                raise unknown(f"layer of {type(inner).__name__}", layer, [*aliases, *modules])
            if linear:
                self._linear[layer] = _linear_of(modules, linear, layer)
            if side == "nhwc":
                self._last.append(layer)
            keep = _Tap(self._caught, layer, side.removeprefix("nhwc"))
            if side == "in":  # before the layer runs, as it may overwrite its input
                self._hooks.append(modules[name].register_forward_pre_hook(keep, with_kwargs=True))
            else:
                self._hooks.append(modules[name].register_forward_hook(keep, with_kwargs=True))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Runs one forward pass over ``images`` [B, C, H, W]."""
        with self._caught:
            output = self.network(images)
            if self._caught.overwritten():
                output = self._again(images)
            tapped = {"": output, **{name: tensor for name, (tensor, _) in self._caught.items()}}
        tapped |= dict.fromkeys(self._outputs, output)
        missing = [layer for layer in self._keys if layer not in tapped]
        if missing and (self.network.training or not self.training_only.issuperset(missing)):
            raise NotRun(self.network, missing)
        for layer in self._last:
            if layer in tapped:
                tapped[layer] = tapped[layer].movedim(-1, 1)
        for layer, linear in self._linear.items():
            if layer in tapped:
                tapped[layer] = _everywhere(linear, tapped[layer])
        return tapped

    def remove(self) -> None:
        """Removes the hooks from the network."""
        for hook in self._hooks:
            hook.remove()

    def _again(self, images: Tensor) -> Any:
        """Turns ``inplace`` off in all modules, as one may have overwritten a tapped tensor, and runs again."""
        for module in self.network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        self._caught.clear()
        with frozen_statistics(self.network):
            output = self.network(images)
        if names := self._caught.overwritten():
            raise InputError(f"the output of layer {names[0]!r} is overwritten in place by the network itself")
        return output


class NotRun(InputError):
    """Tapped layers did not run in a forward pass."""

    def __init__(self, network: nn.Module, layers: list[str]) -> None:
        self.layers = layers
        mode = "training" if network.training else "evaluation"
        super().__init__(f"layer {layers[0]!r} of {type(unwrap(network)).__name__} did not run in {mode} mode")


def tried(taps: Taps, images: Tensor) -> dict[str, Tensor]:
    """The tapped tensors for ``images`` in eval mode; the network itself is left unchanged.

    Tapped layers must also run in training mode. If some run only in training mode, such as auxiliary heads, all
    tensors are from a pass in that mode.
    """
    with untouched(taps.network):
        taps.network.eval()
        try:
            tapped = taps(images)
        except NotRun as error:
            taps.training_only = set(error.layers)
            taps.network.train()
            tapped = taps(images)
        if taps.layers:
            taps.network.train()
            with torch.enable_grad():
                taps(images)
    return tapped


class Caught(dict[str, tuple[Tensor, int]]):
    """Tensors and their versions by layer, from forward passes inside its context only."""

    def __init__(self) -> None:
        super().__init__()
        self.open = self.trains = False

    def __enter__(self) -> None:
        self.open, self.trains = True, torch.is_grad_enabled()

    def __exit__(self, *error: Any) -> None:
        self.open = False
        self.clear()

    def overwritten(self) -> list[str]:
        """The layers whose tensor has been overwritten since it was stored."""
        return [name for name, (tensor, version) in self.items() if _version(tensor) != version]


class _Tap:
    """A forward hook that stores one tensor; a class, so that a copy of a network gets its own."""

    def __init__(self, caught: Caught, layer: str, side: str) -> None:
        self.caught, self.layer, self.side = caught, layer, side

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], *output: Any) -> None:
        if not self.caught.open:
            return
        value = output[0] if output else next(iter([*inputs, *named.values()]), None)
        tensor = _part(value, self.side) if output and self.side else value
        if not isinstance(tensor, Tensor):
            raise InputError(f"layer {self.layer!r} returns a {type(tensor).__name__}; {_parts(self.layer, tensor)}")
        if self.caught.trains and not torch.is_grad_enabled():
            fix = "remove torch.no_grad, or set use_reentrant=False for activation checkpointing"
            raise InputError(f"layer {self.layer!r} runs without gradient, so a loss at it cannot train: {fix}")
        self.caught[self.layer] = (tensor, _version(tensor))


def _part(value: Any, key: str) -> Any:
    """The output at a position, or under a key or attribute; None if there is none."""
    if key.isdigit() and isinstance(value, (tuple, list)):
        return value[int(key)] if int(key) < len(value) else None
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)


def _parts(layer: str, value: Any) -> str:
    """The end of a message: how to tap the tensors within an output."""
    keys: list[Any] = list(value) if isinstance(value, Mapping) else []
    if isinstance(value, (tuple, list)):
        keys = [position for position, each in enumerate(value) if isinstance(each, Tensor)]
    choices = ", ".join(f"{layer}:{key}" for key in keys[:5])
    return f"only tensors can be tapped{f': use {choices}' if choices else ''}"


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference tensors have no version


def _linear_of(modules: dict[str, nn.Module], name: str, layer: str) -> nn.Linear:
    linear = modules.get(name)
    if not isinstance(linear, nn.Linear):
        linear_layers = [key for key, module in modules.items() if isinstance(module, nn.Linear)]
        raise unknown("linear layer in " + repr(layer), name, linear_layers)
    return linear


def _everywhere(linear: nn.Linear, features: Tensor) -> Tensor:
    """Applies the linear layer to the channels at every position of a map [B, C, H, W], or of tokens [..., C]."""
    if features.ndim == 4:
        return F.conv2d(features, linear.weight[:, :, None, None], linear.bias)
    return linear(features)
