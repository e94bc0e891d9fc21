"""Names, typed configuration nodes, and objects made from nodes.

:mod:`~kd.registry.core` has the registries, :mod:`~kd.registry.schema` makes nodes from signatures,
:mod:`~kd.registry.instantiate` builds objects from nodes, and :mod:`~kd.registry.aliases` knows where the dotted paths
of earlier versions lead.
"""

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
from kd.registry.nested import flatten, replaced, value_at
from kd.registry.schema import MISSING, dataclass_of, defaults_of, fields_of, node_of, parameters

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
    "flatten",
    "is_node_of",
    "load_plugins",
    "locate",
    "losses",
    "models",
    "modules",
    "node_of",
    "optimisers",
    "parameters",
    "parameters_of",
    "replaced",
    "shadowed",
    "sources",
    "split",
    "target_of",
    "unnamed",
    "value_at",
    "with_current",
]
