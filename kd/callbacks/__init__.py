"""Lightning's callbacks, loggers and checkpoint files, written for distillation."""

from __future__ import annotations

from kd.registry.lazy import exports

_FILES = {
    "ApplySpeed": "speed",
    "AtChance": "batch_statistics",
    "AtomicCheckpointIO": "checkpoint",
    "BatchSize": "batch_size",
    "BatchStatistics": "batch_statistics",
    "Best": "best",
    "Charts": "charts",
    "EMA": "ema",
    "History": "history",
    "Last": "checkpoint",
    "NaNGuard": "nan_guard",
    "Pictures": "charts",
    "Position": "position",
    "ProgressBar": "progress",
    "Speed": "speed",
    "TeacherGate": "teacher_gate",
    "TensorBoard": "tensorboard",
    "Throughput": "progress",
}

__getattr__, __dir__ = exports(__name__, _FILES)
