"""How a step's cost grows, what the KL term takes, how long a command takes to its first step."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import OFF, configured, data_of, summed, turns
from machine import conv_peak, has_bf16, matmul_peak, peak_bytes
from paced import Bare, Fit
from torch import Tensor

from kd.losses._fused_kl import fused_kl

PAIR = "resnet20->resnet8"
BASE = {"batch": 64, "classes": 100, "pixels": 32, "objective": "kd"}
AXES: dict[str, tuple[Any, ...]] = {
    "batch": (16, 64, 256),
    "classes": (10, 100, 1000, 21841),
    "pixels": (16, 32, 64),
    "objective": ("ce", "kd", "dkd", "sp", "at", "crd_batch"),
}
STAMP = """import time
from pytorch_lightning.callbacks import Callback
class Stamp(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 1:
            print("STAMP", time.time(), flush=True)
"""


def growth(device: torch.device) -> dict[str, Any]:
    """Bare loop and kd's default live step, one thing changed at a time."""
    found: dict[str, Any] = {"pair": PAIR}
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    for axis, values in AXES.items():
        for value in values:
            given = {**BASE, axis: value}
            data = data_of(given["pixels"], given["classes"], given["batch"], 20)
            with tempfile.TemporaryDirectory() as root:
                bare = Bare(configured(PAIR, root, accelerator, *OFF), data, device)
                config = configured(PAIR, root, accelerator, *OFF, f"objective={given['objective']}")
                fit = Fit(config, data, root, bare)
                rows = summed(turns({"bare": bare.step, "kd": fit.step}, 12))
                fit.stop()
            found.setdefault(axis, {})[str(value)] = {"bare": rows["bare"]["ms"], **rows["kd"]}
    return found


def costs_of_kl(device: torch.device, T: float = 4.0) -> dict[str, Any]:
    """Value and gradient of T^2 KL at 128 samples: as RepDistiller and mdistiller write it, by logarithms, and kd's."""

    def plain(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return F.kl_div(F.log_softmax(student / T, -1), F.softmax(teacher / T, -1), reduction="sum")

    def logs(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        log_q, log_p = F.log_softmax(student / T, -1), F.log_softmax(teacher / T, -1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="sum")

    ways = (("plain", plain), ("logs", logs), ("kd", fused_kl))
    found = {}
    for classes in (100, 1000, 21841):
        student, teacher = (3 * torch.randn(128, classes, device=device) for _ in range(2))
        exact = student.double().requires_grad_()
        plain(exact, teacher.double(), T).backward()
        row: dict[str, float] = {}
        for name, function in ways:
            leaf = student.clone().requires_grad_()
            function(leaf, teacher, T).backward()
            assert leaf.grad is not None
            assert exact.grad is not None
            row[f"{name}_gradient_error"] = float((leaf.grad - exact.grad).norm() / exact.grad.norm())
            row[f"{name}_mb"] = round(peak_bytes(partial(_step, function, leaf, teacher, T), device) / 1e6, 2)
        taken: dict[str, list[float]] = {name: [] for name, _ in ways}
        for name, function in ways * 60:
            leaf = student.clone().requires_grad_()
            started = time.perf_counter()
            function(leaf, teacher, T).backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - started)
        row |= {f"{name}_ms": round(1e3 * statistics.median(times[10:]), 3) for name, times in taken.items()}
        found[str(classes)] = row
    return found


def _step(function: Callable[..., Tensor], leaf: Tensor, teacher: Tensor, T: float) -> None:
    leaf.grad = None
    function(leaf, teacher, T).backward()


def peaks(device: torch.device) -> dict[str, Any]:
    """GFLOP per second of products and convolutions."""
    kinds = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bf16(device) else {})
    return {
        name: {"matmul": round(matmul_peak(kind, device) / 1e9), "conv": round(conv_peak(kind, device) / 1e9)}
        for name, kind in kinds.items()
    }


def startup(device: torch.device) -> dict[str, float]:
    """Seconds of ``kd-train --help``, and from the command to the end of the first step of a run on the digits."""
    command = [sys.executable, "-m", "kd.cli"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "stamp.py").write_text(STAMP)
        run = [*command, "teacher=none", "objective=ce", "epochs=1", "trainer.enable_progress_bar=false"]
        run += ["+callbacks.stamp._target_=stamp.Stamp"]
        helps, firsts = [], []
        for turn in range(5):
            started = time.time()
            subprocess.run([*command, "--help"], cwd=folder, check=True, capture_output=True)
            helps.append(time.time() - started)
            started = time.time()
            done = subprocess.run(
                [*run, f"hydra.run.dir=r{turn}"], cwd=folder, check=True, capture_output=True, text=True
            )
            firsts.append(float(done.stdout.split("STAMP ")[1].split()[0]) - started)
    return {"help_s": round(statistics.median(helps), 2), "first_step_s": round(statistics.median(firsts), 2)}
