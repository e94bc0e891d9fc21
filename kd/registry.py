"""The registry: one decorator gives a name in Python and a typed Hydra node made from the signature.

A class or function registered in a group can be written ``group=name`` on the command line. Its node holds
``_target_``, every parameter with its type and default, and the parameters with defaults of whatever goes
*around* it: a loss sits in a ``Term``, so its node also has ``weight``, ``student``, ``teacher`` and so on.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from kd.errors import InputError, at_place, placed, unknown
from kd.schema import MISSING, dataclass_of, defaults_of, fields_of, parameters
from kd.schema import node_of as node_of


class Registry(Mapping[str, Callable[..., Any]]):
    """Names of one kind of thing.

    Args:
        kind: what its entries are called in messages.
        groups: Hydra group to the dotted path ``module:name`` of what goes around an entry there, or "".
        given: parameters that kd supplies itself, so that they are no configuration keys.
    """

    def __init__(self, kind: str, groups: dict[str, str], given: tuple[str, ...] = ()) -> None:
        self.kind, self.groups, self.given = kind, groups, given
        self._entries: dict[str, Callable[..., Any]] = {}
        self._importing: set[str] = set()

    def register(self, name: str, imports: bool = False, **defaults: Any) -> Callable[[Callable[..., Any]], Any]:
        """Decorator: the class or function is ``registry[name]`` and the Hydra choice ``group=name``.

        ``imports`` says that its arguments name code, so that it is made only for whom is trusted; ``defaults`` are
        its node's for parameters of what goes around it, where they differ.
        """

        def keep(entry: Callable[..., Any]) -> Callable[..., Any]:
            known = self._entries.get(name)
            if known is not None and target_of(known) != target_of(entry):
                raise InputError(f"{self.kind} {name!r} is registered already, by {target_of(known)}")
            self._entries[name] = entry
            if imports:
                self._importing.add(name)
            for group, around in self.groups.items():
                _store(group, name, self._node(entry, around, defaults))
            return entry

        return keep

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def name_of(self, target: str | None) -> str | None:
        """The name under which a dotted path is registered."""
        return next((name for name, entry in self._entries.items() if target_of(entry) == target), None)

    def offers(self, target: str) -> bool:
        """Whether a dotted path is registered and may be made from a node that nobody vouches for."""
        name = self.name_of(target)
        return name is not None and name not in self._importing

    def _node(self, entry: Callable[..., Any], around: str, defaults: Mapping[str, Any]) -> type:
        fields = {"_target_": (str, target_of(entry)), **fields_of(entry, skip=self.given)}
        if around:
            extra = fields_of(locate(around))
            extra |= {key: (extra[key][0], default) for key, default in defaults.items()}
            fields = {**{key: field for key, field in extra.items() if field[1] != MISSING}, **fields}
        return dataclass_of(entry.__name__, fields)


class RegistryPackage(types.ModuleType):
    """A package that answers ``package["name"]`` from its ``registry``."""

    registry: Registry

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.registry[name]

    def __contains__(self, name: object) -> bool:
        return name in self.registry

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)

    def __len__(self) -> int:
        return len(self.registry)

    def register(self, name: str) -> Callable[[Callable[..., Any]], Any]:
        """The registry's decorator."""
        return self.registry.register(name)


losses = Registry("loss", {"loss": "kd.objective:Term"})
models = Registry(
    "model",
    {"student": "kd.models.weights:prepare", "teacher": "kd.models.weights:Origin"},
    given=("classes", "num_classes", "channels", "in_channels", "shape"),
)
sources = Registry("data set", {"source": "kd.data.memory:Memory"})
modules = Registry("data module", {"module": ""}, given=("seed",))
optimisers = Registry("optimiser", {"optim": "kd.optim:Optim"}, given=("parameters",))


def load_plugins() -> None:
    """Imports every installed package that names an entry point in the group ``kd.plugins``."""
    for plugin in entry_points(group="kd.plugins"):
        try:
            plugin.load()
        except Exception as error:
            raise InputError(f"the plugin {plugin.name!r} ({plugin.value}) cannot be loaded: {error}") from error


def target_of(entry: Callable[..., Any]) -> str:
    """The dotted path of a class or function."""
    return f"{entry.__module__}.{entry.__qualname__}"


def locate(path: str) -> Callable[..., Any]:
    """What ``module:name`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


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

    target = node.get("_target_")
    if not isinstance(target, str):
        raise InputError(f"{at} has no _target_: give the dotted path of a class or function")
    if not trust:
        check_registered(node, at)
    try:
        function = get_object(target)
        _check_arguments(function, node, at)
        named = inspect.signature(function).parameters
        supplied = {key: value for key, value in given.items() if key in named and key not in node}
        return instantiate({**node, "_partial_": partial}, **supplied, _convert_="all")
    except InputError:
        raise
    except (InstantiationException, ImportError, ValueError, TypeError) as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        told = (ImportError, ValueError, TypeError, OSError, InstantiationException, MisconfigurationException)
        if isinstance(cause, told):
            raise at_place(at, cause) from error
        raise cause from None


def named_by(node: Mapping[str, Any], at: str) -> set[str]:
    """The parameters that a node's target has.

    Raises:
        InputError: no target, or none that can be imported.
    """
    from hydra.utils import get_object

    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{at} has no _target_: give the dotted path of a class or function")
    with placed(at):
        try:
            return set(parameters(get_object(node["_target_"])))
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
    extra -= named_by(node, at) - set(models.given)
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
        if target is not None and target not in known and not any(r.offers(target) for r in registries):
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


def _check_arguments(function: Callable[..., Any], node: Mapping[str, Any], at: str) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        return
    known = parameters(function)
    for key in node:
        if not key.startswith("_") and key not in known:
            raise unknown("option", f"{at}.{key}", [f"{at}.{name}" for name in known])


def _store(group: str, name: str, node: Any) -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=group, name=name, node=node, provider="kd")
