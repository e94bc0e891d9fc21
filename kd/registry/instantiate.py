"""From configuration nodes to objects: what a node describes is built, divided, or refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kd.errors import InputError, located, unknown, with_key
from kd.registry.aliases import current, with_current
from kd.registry.core import losses, models, modules, optimisers, sources
from kd.registry.schema import defaults_of, parameters


def build(node: Mapping[str, Any], at: str, *, trust: bool = True, partial: bool = False, **given: Any) -> Any:
    """Makes what a configuration node describes.

    Args:
        node: ``_target_`` and its arguments, plain containers.
        at: the node's place in the configuration, for messages.
        trust: whether ``_target_`` may be any path. What a user typed is trusted; what comes out of a run
            folder or a checkpoint is not, and must be registered under exactly that path.
        partial: answer a callable that still wants arguments.
        given: arguments that kd supplies where the target names them and the node does not set them.

    Raises:
        InputError: no or unknown target, an unknown argument, or the target's own complaint.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{at} has no _target_: give the dotted path of a class or function")
    if not trust:
        check_registered(node, at)
    node = with_current(node)
    try:
        function = get_object(node["_target_"])
        _check_arguments(function, node, at)
        named = inspect.signature(function).parameters
        supplied = {key: value for key, value in given.items() if key in named and key not in node}
        return instantiate({**node, "_partial_": partial}, **supplied, _convert_="all")
    except InputError:
        raise
    except (InstantiationException, ImportError, ValueError, TypeError) as error:
        cause = _within(error, InstantiationException)
        if isinstance(cause, KeyError) and not parameters(function):
            raise with_key(at, unnamed(node["_target_"], cause)) from error
        told = (ImportError, ValueError, TypeError, OSError, InstantiationException, MisconfigurationException)
        if isinstance(cause, told):
            raise with_key(at, cause) from error
        raise cause from None


def check_maker(function: Any, name: str) -> None:
    """Refuses a finished module in the place of a function, which would be called with the arguments of its maker.

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


def parameters_of(node: Mapping[str, Any], at: str) -> set[str]:
    """The parameters that a node's target has.

    Raises:
        InputError: no target, or none that can be imported.
    """
    from hydra.utils import get_object

    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{at} has no _target_: give the dotted path of a class or function")
    with located(at):
        try:
            return set(parameters(get_object(current(node["_target_"]))))
        except ImportError as error:
            raise InputError(f"_target_={node['_target_']} cannot be imported: {error}") from error


def split(node: Mapping[str, Any], at: str, *around: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides a node between its target and what goes around it: a network and its weights, a loss and its term.

    A parameter that the target itself names is the target's. Only what kd supplies to networks by itself
    (``classes``, ``channels``, ...) stays with the functions around it where these name it: ``teacher.classes``
    picks columns.

    Args:
        node: ``_target_`` and arguments of both.
        at: the node's place in the configuration, for messages.
        around: the functions whose parameters with defaults may stand in the node. The target is imported, so a
            node that nobody vouches for must have passed :func:`check_registered`.

    Returns:
        The target's node, and the arguments in the node for what goes around it.

    Raises:
        InputError: no target, or none that can be imported.
    """
    extra = {key for function in around for key in defaults_of(function)}
    extra -= parameters_of(node, at) - set(models.given)
    own = {key: value for key, value in node.items() if key not in extra}
    return own, {key: value for key, value in node.items() if key in extra}


def shadowed(node: Mapping[str, Any], at: str, *around: Callable[..., Any]) -> list[str]:
    """The keys of a node that go to its target although what goes around the target has a key of that name too."""
    own, _ = split(node, at, *around)
    return sorted(own.keys() & {key for function in around for key in defaults_of(function)})


def check_registered(node: Any, at: str, known: Collection[str] = ()) -> None:
    """Refuses a node, out of a run folder, that would run anything but what is registered with kd.

    Args:
        node: plain containers.
        at: its place, for messages.
        known: further targets that may be run.

    Raises:
        InputError: a ``_target_`` that is not registered or that imports what its arguments name, or an
            interpolation, which could stand for such a node.
    """
    registries = (losses, models, sources, optimisers, modules)
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if (
            target is not None
            and current(str(target)) not in known
            and not any(r.is_registered(target) for r in registries)
        ):
            known_here = any(registry.name_of(target) for registry in registries)
            why = "imports what it is told" if known_here else "is not registered with kd"
            raise InputError(f"{at} names {target!r}, which {why}; it is not run unless you say trust=true")
        for key, value in node.items():
            check_registered(value, f"{at}.{key}", known)
    elif isinstance(node, (list, tuple)):
        for value in node:
            check_registered(value, at, known)
    elif isinstance(node, str) and "${" in node:
        raise InputError(f"{at} holds the interpolation {node!r}; it is not run")


def _within(error: BaseException, wrapper: type[BaseException]) -> BaseException:
    """The exception that others of one kind are wrapped around."""
    while isinstance(error, wrapper) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_arguments(function: Callable[..., Any], node: Mapping[str, Any], at: str) -> None:
    with located(at):
        check_maker(function, node["_target_"])
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        return
    known = parameters(function)
    for key in node:
        if not key.startswith("_") and key not in known:
            raise unknown("option", f"{at}.{key}", [f"{at}.{name}" for name in known])
