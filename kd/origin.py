"""What a configuration says of where a teacher comes from, apart from what its network's own function is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.errors import InputError
from kd.models.weights import Origin, prepare
from kd.registry import named_by, split

Config = Mapping[str, Any]
WEIGHTS = ("checkpoint", "checkpoint_key")


def origin(node: Config, at: str) -> dict[str, Any]:
    """The options of :class:`Origin` and :func:`prepare` in the node of a teacher's network.

    Raises:
        InputError: a network with a parameter ``checkpoint`` of its own, which could not be told from the teacher's.
    """
    if "checkpoint" in named_by(node, at):
        raise InputError(
            f"{at}: {node['_target_']} has a parameter `checkpoint`, and so has every teacher, for the weights that "
            "kd reads; rename the function's"
        )
    return split(node, at, prepare, Origin)[1]


def shuffled(node: Config | None) -> bool:
    """Whether, as a control, each training sample gets another one's answer of the teacher."""
    if not node or not node.get("_target_"):
        return False
    alone = "members" not in node and "peers" not in node
    return bool((origin(node, "teacher") if alone else node).get("shuffle"))


def unfilled(node: Config, at: str) -> dict[str, Any]:
    """The node of a network without the file of its weights."""
    own, options = split(node, at, prepare)
    return own | {key: value for key, value in options.items() if key not in WEIGHTS}
