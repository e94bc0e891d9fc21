"""Names, typed configuration nodes, and objects from nodes.

:mod:`~kd.registry.core` has the registries, :mod:`~kd.registry.schema` makes nodes from signatures,
:mod:`~kd.registry.instantiate` builds objects from nodes, :mod:`~kd.registry.nested` reads containers by
dotted key, and :mod:`~kd.registry.aliases` maps dotted paths of earlier versions to today's.
"""

from kd.registry import nested
from kd.registry.aliases import current, first, with_current
from kd.registry.core import (
    Registry,
    RegistryPackage,
    is_node_of,
    load_plugins,
    locate,
    losses,
    models,
    modules,
    optimisers,
    sources,
    target_of,
)
from kd.registry.instantiate import build, check_maker, check_registered, parameters_of, shadowed, split, unnamed
from kd.registry.schema import MISSING, dataclass_of, defaults_of, fields_of, node_of, parameters

named_by = parameters_of  # its name in earlier versions

__all__ = [
    "MISSING",
    "Registry",
    "RegistryPackage",
    "build",
    "check_maker",
    "check_registered",
    "current",
    "dataclass_of",
    "defaults_of",
    "fields_of",
    "first",
    "is_node_of",
    "load_plugins",
    "locate",
    "losses",
    "models",
    "modules",
    "named_by",
    "nested",
    "node_of",
    "optimisers",
    "parameters",
    "parameters_of",
    "shadowed",
    "sources",
    "split",
    "target_of",
    "unnamed",
    "with_current",
]
