"""Knowledge distillation for image classification: a frozen teacher, a student, an objective of named losses.

Public names are imported on first use, so that ``import kd`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# A wheel has the configurations inside the package, a checkout next to it.
_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if (p / "train.yaml").is_file())

_PUBLIC = {
    "Batch": "kd.data.batch",
    "Arrays": "kd.data.batch",
    "Data": "kd.data.datamodule",
    "Memory": "kd.data.memory",
    "Distiller": "kd.distill.distiller",
    "Ensemble": "kd.distill.ensemble",
    "Frozen": "kd.distill.teacher",
    "Gate": "kd.callbacks.teacher_gate:TeacherGate",
    "InputError": "kd.errors",
    "Normalized": "kd.models.normalized",
    "Objective": "kd.distill.objective",
    "Optim": "kd.optim",
    "Taps": "kd.distill.taps",
    "Term": "kd.distill.objective",
    "load": "kd.run_folder.load",
}
_PACKAGES = ("data", "losses", "models")
_EARLIER = {"sweep": "kd.cli.sweep"}  # of paths that Hydra imports itself, without kd.registry.aliases

__all__ = ["CONFIG_DIR", "__version__", *_PUBLIC, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        return getattr(import_module(module), attribute or name)
    if name in _PACKAGES:
        return import_module(f"kd.{name}")
    if name in _EARLIER:
        return import_module(_EARLIER[name])
    raise AttributeError(f"module 'kd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
