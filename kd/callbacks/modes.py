"""Whether the best value of a metric is the highest or the lowest."""

from __future__ import annotations

RISING = ("acc", "top5", "agreement", "knn", "images_per_s")
FALLING = ("nll", "ece", "kl", "soft_ce", "loss")
EITHER = ("entropy",)


def mode_of(monitor: str | None) -> str | None:
    """``max`` or ``min``: whether the best value of a metric is the highest or the lowest; None if unknown to kd.

    Args:
        monitor: the metric's tag, for example ``val/acc``; None monitors nothing, and any mode is valid.
    """
    part, _, name = str(monitor or "val/acc").partition("/")  # no text is no metric's tag either
    last = name.rpartition("/")[2].removeprefix("teacher_")
    if part not in ("val", "teacher", "train", "time") or last in EITHER:
        return None
    if last in RISING:
        return "max"
    term = part == "train" and "/" not in name  # of the objective, which is minimised
    return "min" if last in FALLING or term else None


def validated(monitor: str | None) -> bool:
    """Whether a metric is measured in validation, not in training steps."""
    return monitor is not None and monitor.startswith(("val/", "teacher/")) and monitor != "teacher/entropy"
