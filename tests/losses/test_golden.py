"""Every golden case: values, components and gradients in float64, at the case's own tolerance.

``pytest tests/losses/test_golden.py --golden FOLDER`` runs any other folder in the same format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runners import RUNNERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden"))
    index = json.loads((folder / "index.json").read_text())
    cases = index["cases"] if isinstance(index, dict) else index
    metafunc.parametrize("case", [{**case, "folder": str(folder)} for case in cases], ids=lambda case: case["id"])


def test_case(case: dict[str, Any]) -> None:
    with np.load(Path(case["folder"]) / case["file"], allow_pickle=False) as arrays:
        stored = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    expected = {name.removeprefix("out_"): value for name, value in stored.items() if name.startswith("out_")}
    inputs = {name.removeprefix("in_"): value for name, value in stored.items() if name.startswith("in_")}
    gradients = {name.removeprefix("grad_"): value for name, value in expected.items() if name.startswith("grad_")}
    wanted = {name.rpartition("__")[2] for name in gradients}
    for name in wanted:
        inputs[name].requires_grad_(True)

    outputs = RUNNERS[case["method"]](inputs, case["hyperparameters"])

    tolerance = {key: case["tolerance"][key] for key in ("rtol", "atol")}
    for name, value in expected.items():
        if not name.startswith("grad_"):
            torch.testing.assert_close(outputs[name].detach(), value, **tolerance, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in gradients.items():
        part, _, source = name.rpartition("__")
        (found,) = torch.autograd.grad(
            outputs[part or "loss"], inputs[source], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        torch.testing.assert_close(found, value, **tolerance, msg=lambda m, n=name: f"grad {n}: {m}")
