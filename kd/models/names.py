"""Names of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.registry import current, first, models


def name_of(node: Mapping[str, Any]) -> str:
    """A network's name: that in its library, that of an imported function, else the registered or dotted name.

    A renamed class keeps the name that it has in summaries of earlier runs, by which reports group them.
    """
    target = str(node["_target_"])
    registered = models.name_of(target)
    function = str(node.get("path") or "").rpartition(":")[2] if registered == "import" else ""
    return str(node.get("name") or function or registered or first(current(target)).rpartition(".")[2])


def title_of(node: Mapping[str, Any]) -> str:
    """A network's name in messages; of an imported one its path."""
    return str(node.get("path") or name_of(node))
