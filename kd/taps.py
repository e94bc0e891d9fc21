"""Taps: a network's output together with the tensors at named layers, of any network, by hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd.errors import InputError, unknown
from kd.models.normalized import bare
from kd.models.recompute import still
from kd.models.stages import taps_of

HEADS = {"class_head": "head", "distillation_head": "head_dist"}


class Taps:
    """Runs ``network`` and answers ``{"": output, "layer3": ..., "fc:in": ...}``.

    ``layers`` are the network's own module names: ``name`` is that layer's output, ``name:in`` its first input,
    ``name@linear`` the output with the named linear layer applied at every position of the map, which gives a map
    of logits. ``embedding`` is the last linear layer's input. Networks of the zoo also answer to ``stem``,
    ``stage1``, ``stage1.pre``, ..., ``last`` and ``logit_map``, through their attribute ``aliases``; of any other
    network these are measured. ``stage-1`` is the last stage, ``stages`` all of them and ``stages[:-1]`` all but the
    last, answered as ``stages[1]``, ``stages[2]``, ...; with ``.pre``, before the activation that ends the stage.
    ``class_head`` and ``distillation_head`` are the two heads of a network with a distillation token, of any other its
    output. ``name:nhwc`` is an output [B, H, W, C] as a map [B, C, H, W]. A layer that runs several times in one
    forward pass answers with its last run. Nothing is kept between calls.

    Raises:
        InputError: a name that the network does not have (the nearest ones are named), a layer that did not
            run, a layer whose output is no single tensor, or one that is overwritten in place by other means
            than a module's ``inplace`` flag.
    """

    def __init__(self, network: nn.Module, layers: Iterable[str] = ()) -> None:
        self.network = network
        self.layers = tuple(dict.fromkeys(layers))
        self._caught: dict[str, tuple[Tensor, int]] = {}
        self._linear: dict[str, nn.Linear] = {}
        self._hooks: list[RemovableHandle] = []
        self._outputs: list[str] = []
        self._last: list[str] = []
        self._safe = not self.layers
        inner = bare(network)
        modules = {name: module for name, module in inner.named_modules() if name}
        classifiers = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
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
            if name not in modules or side not in ("", "in", "nhwc"):
                raise unknown(f"layer of {type(inner).__name__}", layer, [*aliases, *modules])
            if linear:
                self._linear[layer] = _linear_of(modules, linear, layer)
            if side == "nhwc":
                self._last.append(layer)
            keep = _Tap(self._caught, layer)
            if side == "in":  # before the layer runs, as it may overwrite its input
                self._hooks.append(modules[name].register_forward_pre_hook(keep))
            else:
                self._hooks.append(modules[name].register_forward_hook(keep))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """One forward pass over ``images`` [B, C, H, W]."""
        output = self.network(images)
        if not self._safe:
            output = self._make_safe(images, output)
        tapped = {"": output, **{name: tensor for name, (tensor, _) in self._caught.items()}}
        tapped |= dict.fromkeys(self._outputs, output)
        self._caught.clear()
        for layer in self._last:
            tapped[layer] = tapped[layer].movedim(-1, 1)
        for layer, linear in self._linear.items():
            tapped[layer] = _everywhere(linear, tapped[layer])
        return tapped

    def remove(self) -> None:
        """Takes the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    def _make_safe(self, images: Tensor, output: Tensor) -> Tensor:
        """Turns ``inplace`` off where an operation after a tapped layer rewrote its tensor."""
        if self._overwritten():
            for module in self.network.modules():
                if getattr(module, "inplace", False) is True:
                    module.inplace = False  # type: ignore[assignment]
            with still(self.network):
                output = self.network(images)
        if names := self._overwritten():
            raise InputError(f"the output of layer {names[0]!r} is overwritten in place by the network itself")
        if missing := [layer for layer in self._keys if layer not in self._caught and layer not in self._outputs]:
            raise InputError(f"layer {missing[0]!r} of {type(self.network).__name__} did not run")
        self._safe = True
        return output

    def _overwritten(self) -> list[str]:
        return [name for name, (tensor, version) in self._caught.items() if _version(tensor) != version]


class _Tap:
    """A forward hook that keeps one tensor; a class, so that copies of a network keep their own."""

    def __init__(self, caught: dict[str, tuple[Tensor, int]], layer: str) -> None:
        self.caught, self.layer = caught, layer

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], *output: Any) -> None:
        tensor = output[0] if output else inputs[0]
        if not isinstance(tensor, Tensor):
            raise InputError(f"layer {self.layer!r} gives a {type(tensor).__name__}; only tensors can be tapped")
        self.caught[self.layer] = (tensor, _version(tensor))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference tensors keep no count


def _linear_of(modules: dict[str, nn.Module], name: str, layer: str) -> nn.Linear:
    linear = modules.get(name)
    if not isinstance(linear, nn.Linear):
        known = [key for key, module in modules.items() if isinstance(module, nn.Linear)]
        raise unknown("linear layer in " + repr(layer), name, known)
    return linear


def _everywhere(linear: nn.Linear, features: Tensor) -> Tensor:
    """The linear layer on the channels of every position of a map [B, C, H, W], or of tokens [..., C]."""
    if features.ndim == 4:
        return F.conv2d(features, linear.weight[:, :, None, None], linear.bias)
    return linear(features)
