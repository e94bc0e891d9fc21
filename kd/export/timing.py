"""How long an answer takes."""

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
def latency(answer: Callable[[Tensor], Tensor], shape: Sequence[int], batch: int) -> dict[str, Any]:
    """Milliseconds for a batch of random images on the CPU: median, and the tenth and ninetieth percentile.

    It runs three times unmeasured, then for about a second, at least 10 times and at most 1000.
    """
    images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        answer(images)
    taken: list[float] = []
    while len(taken) < 10 or (sum(taken) < SECONDS and len(taken) < 1000):
        started = time.perf_counter()
        answer(images)
        taken.append(time.perf_counter() - started)
    tenths = statistics.quantiles(taken, n=10, method="inclusive")
    numbers = {"median_ms": statistics.median(taken), "p10_ms": tenths[0], "p90_ms": tenths[-1]}
    return {key: round(1000 * value, 4) for key, value in numbers.items()} | {"runs": len(taken)}


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
