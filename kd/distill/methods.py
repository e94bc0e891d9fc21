"""The distiller class for each teacher and optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.distill.distiller import Distiller
from kd.distill.dot import DOTDistiller
from kd.distill.mean_teacher import MeanTeacher, MeanTeacherDistiller
from kd.distill.mutual import MutualDistiller, Peers
from kd.distill.ressl import MomentumTeacher, ReSSLDistiller
from kd.registry import current, target_of

DISTILLERS: dict[str, Any] = {
    target_of(MeanTeacher): MeanTeacherDistiller,
    target_of(Peers): MutualDistiller,
    target_of(MomentumTeacher): ReSSLDistiller,
}


def distiller_for(teacher: Mapping[str, Any], optimisers: bool) -> Any:
    """The distiller class for a teacher's configuration node.

    Args:
        teacher: the node.
        optimisers: whether the optimiser needs separate gradients of task and distillation, as DOT does.
    """
    online = DISTILLERS.get(current(str(teacher.get("_target_"))))
    return online or (DOTDistiller if optimisers else Distiller)
