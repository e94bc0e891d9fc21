"""Distillation: objectives, layer taps, teachers, and the Lightning modules that train a student."""

from __future__ import annotations

from kd.registry.lazy import exports

_FILES = {
    "CacheOptions": "cached",
    "Cached": "cached",
    "Distiller": "distiller",
    "Ensemble": "ensemble",
    "Frozen": "teacher",
    "FrozenTeacher": "teacher",
    "MeanTeacher": "mean_teacher",
    "MomentumTeacher": "ressl",
    "Objective": "objective",
    "OnlineTeacher": "teacher",
    "Peers": "mutual",
    "Predictions": "metrics",
    "Scores": "metrics",
    "Taps": "taps",
    "Teacher": "teacher",
    "TeacherOptions": "teacher_options",
    "Term": "term",
}

__getattr__, __dir__ = exports(__name__, _FILES)
