"""The latency of an exported file."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SECONDS = 1.0


@torch.no_grad()
def latency(predict: Callable[[Tensor], Tensor], shape: Sequence[int], batch: int) -> dict[str, Any]:
    """Milliseconds for a batch of random images on the CPU: median, 10th and 90th percentile.

    After three warm-up calls, it is measured for about a second, with 10 to 1000 calls.
    """
    images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        predict(images)
    times: list[float] = []
    while len(times) < 10 or (sum(times) < SECONDS and len(times) < 1000):
        started = time.perf_counter()
        predict(images)
        times.append(time.perf_counter() - started)
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    numbers = {"median_ms": statistics.median(times), "p10_ms": tenths[0], "p90_ms": tenths[-1]}
    return {key: round(1000 * value, 4) for key, value in numbers.items()} | {"runs": len(times)}


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
