"""The registry: one decorator gives a name in Python and a typed Hydra node from the signature.

A class or function registered in a group can be written ``group=name`` on the command line. Its node holds
``_target_``, every parameter with its type and default, and those parameters of its *wrapper* that have defaults: the
wrapper of a loss is ``Term``, so its node also has ``weight``, ``student``, ``teacher`` and so on.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from kd.errors import InputError, unknown
from kd.registry.aliases import current
from kd.registry.model_arguments import accept_both_names
from kd.registry.schema import MISSING, dataclass_of, fields_of


class Registry(Mapping[str, Callable[..., Any]]):
    """The registered names of one kind of object.

    Args:
        kind: name of the kind in messages.
        groups: Hydra group to the path ``module:name`` of the wrapper of its entries, or "".
        supplied: parameters that kd passes itself, so that they are not configuration keys.
        adapt: applied to every entry before it is registered.
    """

    def __init__(
        self,
        kind: str,
        groups: dict[str, str],
        supplied: tuple[str, ...] = (),
        adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        self.kind, self.groups, self.supplied, self.adapt = kind, groups, supplied, adapt
        self._entries: dict[str, Callable[..., Any]] = {}
        self._importing: set[str] = set()

    def register(self, name: str, imports: bool = False, **defaults: Any) -> Callable[[Callable[..., Any]], Any]:
        """Decorator: the class or function is ``registry[name]`` and the Hydra choice ``group=name``.

        ``imports`` marks entries whose arguments name code, so that they are built only from trusted nodes;
        ``defaults`` override, in its node, defaults of the wrapper's parameters.
        """

        def add(entry: Callable[..., Any]) -> Callable[..., Any]:
            registered = self._entries.get(name)
            if registered is not None and target_of(registered) != target_of(entry):
                raise InputError(f"{self.kind} {name!r} is registered already, by {target_of(registered)}")
            entry = entry if self.adapt is None else self.adapt(entry)
            self._entries[name] = entry
            if imports:
                self._importing.add(name)
            for group, wrapper in self.groups.items():
                _store(group, name, self._node(entry, wrapper, defaults))
            return entry

        return add

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
        """The registered name of a dotted path, or None."""
        path = None if target is None else current(target)
        return next((name for name, entry in self._entries.items() if target_of(entry) == path), None)

    def is_registered(self, target: str) -> bool:
        """Whether a dotted path is registered and may be built from an untrusted node."""
        name = self.name_of(target)
        return name is not None and name not in self._importing

    def _node(self, entry: Callable[..., Any], wrapper: str, defaults: Mapping[str, Any]) -> type:
        fields = {"_target_": (str, target_of(entry)), **fields_of(entry, skip=self.supplied)}
        if wrapper:
            extra = fields_of(locate(wrapper))
            extra |= {key: (extra[key][0], default) for key, default in defaults.items()}
            fields = {**{key: field for key, field in extra.items() if field[1] != MISSING}, **fields}
        return dataclass_of(entry.__name__, fields)


class RegistryPackage(types.ModuleType):
    """A package whose ``package["name"]`` is an entry of its ``registry``."""

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


losses = Registry("loss", {"loss": "kd.distill.term:Term"})


models = Registry(
    "model",
    {"student": "kd.models.weights:prepare", "teacher": "kd.distill.teacher_options:TeacherOptions"},
    supplied=("classes", "num_classes", "channels", "in_channels", "shape"),
    adapt=accept_both_names,
)


sources = Registry("data set", {"source": "kd.data.memory:Memory"})


modules = Registry("data module", {"module": ""}, supplied=("seed",))


optimisers = Registry("optimiser", {"optim": "kd.optim:Optim"}, supplied=("parameters",))


def load_plugins() -> None:
    """Imports every installed package with an entry point in the group ``kd.plugins``."""
    for plugin in entry_points(group="kd.plugins"):
        try:
            plugin.load()
        except Exception as error:
            raise InputError(f"the plugin {plugin.name!r} ({plugin.value}) cannot be loaded: {error}") from error


def target_of(entry: Callable[..., Any]) -> str:
    """The dotted path of a class or function."""
    return current(f"{entry.__module__}.{entry.__qualname__}")


def is_node_of(node: Mapping[str, Any], entry: Callable[..., Any]) -> bool:
    """Whether a node's target is this class or function, under its current or an earlier path."""
    return node.get("_target_") is not None and current(str(node["_target_"])) == target_of(entry)


def locate(path: str) -> Callable[..., Any]:
    """The object at ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _store(group: str, name: str, node: Any) -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=group, name=name, node=node, provider="kd")
