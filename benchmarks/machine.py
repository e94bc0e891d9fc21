"""What a machine can do, and what a step takes of its memory."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from kd.callbacks._lightning import bf16_on_cpu


def about(device: torch.device) -> str:
    """Machine, threads and versions in a line."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        cpu = Path("/proc/cpuinfo")
        lines = cpu.read_text().splitlines() if cpu.is_file() else []
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
        flags = next((line for line in lines if line.startswith("flags")), "")
        special = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
        where = f"{model} ({', '.join(special)}), {torch.get_num_threads()} threads"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pytorch-lightning"))
    return f"{where}; {packages}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by instructions of its own."""
    return device.type == "cuda" or bf16_on_cpu()


def best_rate(work: Callable[[], object], flops: float, device: torch.device, times: int = 12) -> float:
    """FLOP per second of the median of some tries."""
    taken = []
    for turn in range(times + 3):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 3:
            taken.append(time.perf_counter() - started)
    return flops / statistics.median(taken)


def matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """FLOP per second of a square product."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return best_rate(lambda: a @ b, 2.0 * size**3, device)


def conv_peak(dtype: torch.dtype, device: torch.device, width: int = 128, side: int = 32, batch: int = 16) -> float:
    """FLOP per second of a 3x3 convolution on channels-last maps."""
    images = torch.randn(batch, width, side, side, dtype=dtype, device=device)
    weight = torch.randn(width, width, 3, 3, dtype=dtype, device=device)
    images, weight = (t.contiguous(memory_format=torch.channels_last) for t in (images, weight))
    with torch.no_grad():
        return best_rate(lambda: F.conv2d(images, weight, padding=1), 18.0 * batch * width**2 * side**2, device)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most that a step has allocated at once, above what lay there before it."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
