"""A faster copy of a frozen network with the same outputs: batch norms folded, ReLUs in place, lower precision."""

from __future__ import annotations

import copy
import logging
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd.models.check import CLOSE, untouched
from kd.models.cost import CONVOLUTIONS
from kd.models.normalized import Normalized, unwrap

log = logging.getLogger(__name__)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CAST = (*CONVOLUTIONS, nn.Linear)  # what autocast runs in lower precision and torch has as a module with weights


def for_inference(
    network: nn.Module, example: Tensor, fold: bool, channels_last: bool, dtype: torch.dtype | None
) -> tuple[nn.Module, int]:
    """A copy of a network in eval mode, and how many of its batch norms are folded into convolutions.

    Args:
        network: is not changed, and is returned if it cannot be copied.
        example: images [B, C, H, W]. A folded copy that cannot run them, or whose outputs differ, is not used.
        fold: whether to fold batch norms and make ReLUs in-place; not if its layers are tapped.
        channels_last: whether convolutions run on channels-last maps.
        dtype: dtype of the weights of convolutions and linear layers, which autocast would cast at every step;
            None leaves them. The copy must then run under autocast.
    """
    try:
        twin, count = _folded(network, example) if fold else (copy.deepcopy(network), 0)
    except Exception as error:  # a custom network may not be copyable
        log.info("%s cannot be copied and is not optimised for inference: %s", type(unwrap(network)).__name__, error)
        return network, 0
    if dtype is not None:
        for module in twin.modules():
            if type(module) in CAST:
                module.to(dtype)
    if channels_last:
        twin.to(memory_format=torch.channels_last)
    return twin, count


def takes_channels_last(network: nn.Module, example: Tensor, trains: bool) -> bool:
    """Whether a network runs on channels-last maps, as one that calls ``view`` on them does not; it is not changed.

    ``trains`` tries it in training mode as well.
    """
    with untouched(network), torch.no_grad():
        network.to(memory_format=torch.channels_last)
        try:
            for training in (True, False) if trains else (False,):
                network.train(training)
                network(example)
        except RuntimeError:
            return False
        finally:
            network.to(memory_format=torch.contiguous_format)
    return True


@torch.no_grad()
def _folded(network: nn.Module, example: Tensor) -> tuple[nn.Module, int]:
    twin = copy.deepcopy(network)
    try:
        graph = fx.symbolic_trace(unwrap(twin))
        if any(isinstance(argument, torch.device) for node in graph.graph.nodes for argument in _arguments(node)):
            raise TypeError("its code names a device, which a trace would keep")
        count = _fold(graph)
        _relus_in_place(graph)
        if isinstance(twin, Normalized):
            twin.net = graph
        else:
            twin = graph
        expected, output = network(example), twin(example)
        close = (expected - output).abs().max() <= CLOSE * expected.abs().max().clamp(min=1.0)
    except Exception as error:  # a custom network's code may fail anywhere in the tracer
        log.debug("%s is not folded: %s: %s", type(unwrap(network)).__name__, type(error).__name__, error)
        return copy.deepcopy(network), 0
    return (twin, count) if bool(close) else (copy.deepcopy(network), 0)


def _arguments(node: fx.Node) -> list[object]:
    return [*node.args, *node.kwargs.values()]


def _fold(graph: fx.GraphModule) -> int:
    """Folds each batch norm that is the only user of a convolution; returns their number."""
    modules = dict(graph.named_modules())
    uses = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    count = 0
    for node in list(graph.graph.nodes):
        before = _module(node, NORMS, modules) and node.args[0]
        if not isinstance(before, fx.Node) or len(before.users) > 1 or not _module(before, CONVOLUTIONS, modules):
            continue
        convolution, norm = modules[before.target], modules[node.target]
        if uses.count(before.target) > 1 or norm.running_mean is None:
            continue
        parent, _, name = str(before.target).rpartition(".")
        fused = modules[before.target] = fuse_conv_bn_eval(convolution, norm)
        setattr(graph.get_submodule(parent), name, fused)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
        count += 1
    graph.delete_all_unused_submodules()
    graph.recompile()
    return count


def _relus_in_place(graph: fx.GraphModule) -> None:
    """Makes a ReLU in-place where nothing else reads its input: the output of a layer, or a sum."""
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        called = node.op == "call_function" and node.target in (F.relu, torch.relu)
        if (
            not (called or _module(node, (nn.ReLU,), modules))
            or not isinstance(source := node.args[0], fx.Node)
            or len(source.users) > 1
        ):
            continue
        added = source.op == "call_function" and source.target in (operator.add, torch.add)
        if added or _module(source, (*NORMS, *CONVOLUTIONS), modules):
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (source,), {}
    graph.delete_all_unused_submodules()
    graph.recompile()


def _module(node: fx.Node, kinds: tuple[type, ...], modules: dict[str, nn.Module]) -> bool:
    """Whether a node calls a module of exactly one of these kinds; a subclass may do more."""
    return node.op == "call_module" and type(modules.get(str(node.target))) in kinds
