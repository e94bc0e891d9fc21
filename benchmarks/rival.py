"""The step of torchdistill's runner, where it is installed: pip install torchdistill."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from paced import ALPHA, Bare, T

INSTALLED = find_spec("torchdistill") is not None
KD = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
    "temperature": T,
    "alpha": ALPHA,
    "reduction": "batchmean",
}


class Torchdistill:
    """Its DistillationBox with KDLoss as its own recipes have them, on the bare loop's images and networks."""

    def __init__(self, bare: Bare, device: torch.device) -> None:
        import torchdistill.losses  # it registers its losses when imported
        from torchdistill.core.distillation import get_distillation_box

        config: dict[str, Any] = {
            "num_epochs": 1,
            "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only"},
            "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": KD}, "weight": 1.0}}},
            },
        }
        assert torchdistill.losses is not None
        self.bare = bare
        self.box = get_distillation_box(bare.teacher, bare.student, {}, config, device, None, False, 1)
        self.box.teacher_model.eval()

    def step(self) -> None:
        loss = self.box.forward_process(self.bare.images, self.bare.labels, {})
        self.box.post_forward_process(loss)

    def stop(self) -> None:
        pass
