"""What else might make a step faster: a teacher's forward pass and the optimiser's update, each in several ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from harness import summed, turns
from machine import has_bf16
from torch import Tensor, nn

import kd
from kd.models.inference import for_inference

BATCH = 64
TEACHERS = ("resnet56", "wrn_40_2", "resnet32x4")


def forwards(device: torch.device, rounds: int = 25) -> dict[str, Any]:
    """Each teacher's forward pass alone; the ratio to the network as written, under ``no_grad``."""
    images = torch.rand(BATCH, 3, 32, 32, device=device)
    lower = torch.autocast(device.type, torch.bfloat16)
    found = {}
    for name in TEACHERS:
        network = kd.models[name](classes=100).to(device).eval()
        ways: dict[str, Callable[[], None]] = {"as written": _way(network, images, torch.no_grad())}
        ways["inference mode"] = _way(network, images, torch.inference_mode())
        for title, fold, last, dtype in (
            ("folded, without channels_last", True, False, None),
            ("channels_last", False, True, None),
            ("channels_last and folded (the default)", True, True, None),
            ("the default, under bf16 autocast, weights in float32", True, True, None),
            ("the default, under bf16 autocast, weights in bf16 (teacher_precision=bf16)", True, True, torch.bfloat16),
        ):
            if "bf16" in title and not has_bf16(device):
                continue
            runner, _ = for_inference(network, images, fold, last, dtype)
            ways[title] = _way(runner, images, torch.no_grad(), *[lower] * ("autocast" in title))
        if has_bf16(device):
            whole = for_inference(network, images, True, True, None)[0].to(torch.bfloat16)
            ways["the default, all of it in bf16, without autocast"] = _way(whole, images.bfloat16(), torch.no_grad())
        found[name] = summed(turns(ways, rounds), "as written")
    return found


def _way(network: nn.Module, images: Tensor, *contexts: AbstractContextManager[Any]) -> Callable[[], None]:
    def run() -> None:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            network(images)

    return run


def updates(device: torch.device) -> dict[str, Any]:
    """One update of resnet20 by SGD with momentum; the ratio to one parameter after the other."""
    ways: dict[str, Callable[[], None]] = {}
    for title, option in (
        ("one by one", {"foreach": False}),
        ("foreach", {"foreach": True}),
        ("fused", {"fused": True}),
    ):
        network = kd.models["resnet20"](classes=100).to(device)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        ways[title] = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, **option).step
    return summed(turns(ways, 100, 5), "one by one")


def processes(device: torch.device) -> dict[str, float]:
    """Images per second of kd-train, resnet20 to resnet8: one process and two, with as many threads in all."""
    run = [sys.executable, "-m", "kd.cli", "data=synthetic", "data.shape=[3,32,32]", "data.train=8000", "epochs=2"]
    run += ["teacher=resnet20", "student=resnet8", "teacher.epochs=1", "teacher.min_accuracy=0", "teacher.cache=off"]
    run += ["trainer.enable_progress_bar=false", "trainer.accelerator=cpu"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, threads, words in (
            ("1 process of 1 thread", 1, ()),
            ("1 process of 2 threads", 2, ()),
            ("2 processes of 1 thread", 1, ("trainer.devices=2", "trainer.strategy=ddp")),
        ):
            place = f"run{len(found)}"
            given = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            whole = [*run, f"hydra.run.dir={place}", *words]
            subprocess.run(whole, cwd=folder, env=given, check=True, capture_output=True)
            found[title] = json.loads(Path(folder, place, "summary.json").read_text())["training"]["images_per_s"]
    return found
