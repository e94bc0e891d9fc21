"""The teachers that change with the student, and the distiller that goes with each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.distill.mean_teacher import Moving, MovingDistiller
from kd.mutual import MutualDistiller, Peers
from kd.registry import target_of
from kd.ressl import Momentum, ReSSLDistiller

DISTILLERS: dict[str, Any] = {
    target_of(Moving): MovingDistiller,
    target_of(Peers): MutualDistiller,
    target_of(Momentum): ReSSLDistiller,
}


def lives(node: Mapping[str, Any] | None) -> bool:
    """Whether a teacher's configuration node is of one of them."""
    return (node or {}).get("_target_") in DISTILLERS
