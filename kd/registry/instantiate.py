"""From configuration nodes to objects: build, split or refuse a node."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kd.errors import InputError, located, unknown, with_key
from kd.registry.aliases import current, with_current
from kd.registry.core import losses, models, modules, optimisers, sources
from kd.registry.schema import defaults_of, parameters


def build(node: Mapping[str, Any], key: str, /, *, trust: bool = True, partial: bool = False, **arguments: Any) -> Any:
    """Builds the object that a configuration node describes.

    Args:
        node: ``_target_`` and its arguments, plain containers.
        key: the node's key in the configuration, for messages.
        trust: whether ``_target_`` may be any path. The user's own configuration is trusted; that of a run folder or
            a checkpoint is not, and must be registered under exactly that path.
        partial: return a callable that still needs arguments.
        arguments: passed where the target has such a parameter and the node does not set it.

    Raises:
        InputError: no or unknown target, an unknown argument, or an error raised by the target.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{key} has no _target_: set it to the dotted path of a class or function")
    if not trust:
        check_registered(node, key)
    node = with_current(node)
    try:
        function = get_object(node["_target_"])
        _check_arguments(function, node, key)
        named = inspect.signature(function).parameters
        supplied = {name: value for name, value in arguments.items() if name in named and name not in node}
        return instantiate({**node, "_partial_": partial}, **supplied, _convert_="all")
    except InputError:
        raise
    except (InstantiationException, ImportError, ValueError, TypeError) as error:
        cause = _within(error, InstantiationException)
        if isinstance(cause, KeyError) and not parameters(function):
            raise with_key(key, unnamed(node["_target_"], cause)) from error
        reported = (ImportError, ValueError, TypeError, OSError, InstantiationException, MisconfigurationException)
        if isinstance(cause, reported):
            raise with_key(key, cause) from error
        raise cause from None


def check_maker(function: Any, name: str) -> None:
    """Refuses a module instance in the place of a function, which would be called with the arguments of its maker.

    Raises:
        InputError: ``function``, imported as ``name``, is a module.
    """
    from torch import nn

    if isinstance(function, nn.Module):
        kind = type(function).__name__
        raise InputError(
            f"{name} is a {kind} itself: name the class, or a function that makes one, as each run needs its own"
        )


def unnamed(name: str, error: KeyError) -> InputError:
    """The error for a function of ``**`` alone that misses an argument which kd gives only to those that name it."""
    return InputError(
        f"{name} looks for {error} among its ** arguments, and kd fills in only what a function names: "
        "give it a parameter of that name"
    )


def parameters_of(node: Mapping[str, Any], key: str) -> set[str]:
    """The parameters of a node's target.

    Raises:
        InputError: no target, or one that cannot be imported.
    """
    from hydra.utils import get_object

    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{key} has no _target_: set it to the dotted path of a class or function")
    with located(key):
        try:
            return set(parameters(get_object(current(node["_target_"]))))
        except ImportError as error:
            raise InputError(f"_target_={node['_target_']} cannot be imported: {error}") from error


def split(node: Mapping[str, Any], key: str, *wrappers: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides a node between its target and the target's wrappers: a network and its weights, a loss and its term.

    A parameter declared by the target is the target's. Only the parameters that kd passes to networks itself
    (``classes``, ``channels``, ...) are the wrappers' if they declare them: ``teacher.classes`` selects columns.

    Args:
        node: ``_target_`` and arguments of both.
        key: the node's key in the configuration, for messages.
        wrappers: functions whose parameters with defaults may be in the node. The target is imported, so an
            untrusted node must have passed :func:`check_registered`.

    Returns:
        The target's node, and the wrappers' arguments in the node.

    Raises:
        InputError: no target, or one that cannot be imported.
    """
    extra = {name for function in wrappers for name in defaults_of(function)}
    extra -= parameters_of(node, key) - set(models.supplied)
    target_node = {name: value for name, value in node.items() if name not in extra}
    return target_node, {name: value for name, value in node.items() if name in extra}


def shadowed(node: Mapping[str, Any], key: str, *wrappers: Callable[..., Any]) -> list[str]:
    """The keys of a node that are its target's although a wrapper has a key of that name, too."""
    target_node, _ = split(node, key, *wrappers)
    return sorted(target_node.keys() & {name for function in wrappers for name in defaults_of(function)})


def check_registered(node: Any, key: str, trusted: Collection[str] = ()) -> None:
    """Refuses a node from a run folder that would run code not registered with kd.

    Args:
        node: plain containers.
        key: its key, for messages.
        trusted: further targets that may be built.

    Raises:
        InputError: a ``_target_`` that is not registered or that imports what its arguments name, or an
            interpolation, which could resolve to such a node.
    """
    registries = (losses, models, sources, optimisers, modules)
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if (
            target is not None
            and current(str(target)) not in trusted
            and not any(r.is_registered(target) for r in registries)
        ):
            registered = any(registry.name_of(target) for registry in registries)
            why = "imports what its arguments name" if registered else "is not registered with kd"
            raise InputError(f"{key} names {target!r}, which {why}; it is not run unless trust=true is set")
        for name, value in node.items():
            check_registered(value, f"{key}.{name}", trusted)
    elif isinstance(node, (list, tuple)):
        for value in node:
            check_registered(value, key, trusted)
    elif isinstance(node, str) and "${" in node:
        raise InputError(f"{key} contains the interpolation {node!r}, which is not evaluated")


def _within(error: BaseException, wrapper: type[BaseException]) -> BaseException:
    """The exception inside wrappers of one type."""
    while isinstance(error, wrapper) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_arguments(function: Callable[..., Any], node: Mapping[str, Any], key: str) -> None:
    with located(key):
        check_maker(function, node["_target_"])
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        return
    names = parameters(function)
    for name in node:
        if not name.startswith("_") and name not in names:
            raise unknown("option", f"{key}.{name}", [f"{key}.{other}" for other in names])
