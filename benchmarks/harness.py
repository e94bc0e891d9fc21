"""What the measurements of a step share: data, configurations, steps in turn, and ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from kd import Arrays, Data, Memory
from kd.cli import compose

LARGE = "resnet34->resnet18"  # the pair of ImageNet's size
OFF = ("teacher.cache=off",)


def data_of(pixels: int, classes: int, batch: int, batches: int) -> Data:
    """Random images, cropped and flipped; one view of each, so that a cache is full after an epoch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch * batches, 3, pixels, pixels), generator=generator).to(torch.uint8)
    labels = torch.arange(len(images)) % classes
    few = min(64, len(images))
    arrays = Arrays((images, labels), (images[:few], labels[:few]), tuple(map(str, range(classes))))
    return Data(Memory(arrays, batch_size=batch, val="test", pad=4, flip=True, views=1))


def networks(pair: str) -> tuple[str, ...]:
    """A pair as overrides; ``LARGE`` comes from torchvision."""
    teacher, student = pair.split("->")
    if pair == LARGE:
        return ("teacher=torchvision", f"teacher.name={teacher}", "student=torchvision", f"student.name={student}")
    return (f"teacher={teacher}", f"student={student}")


def configured(pair: str, root: str, accelerator: str, *overrides: str) -> dict[str, Any]:
    """A configuration of kd-train; a variant's own words come last."""
    chosen = {word.partition("=")[0] for word in overrides}
    given = [word for word in networks(pair) if word.partition("=")[0] not in chosen]
    if "teacher=none" in overrides:
        given = [word for word in given if not word.startswith("teacher.")]
    if "teacher=none" not in overrides:
        given += ["speed.min_agreement=0"]
    quiet = ("trainer.enable_progress_bar=false", f"cache.root={root}/cache", "epochs=1000", "callbacks.pictures=null")
    return compose(*given, *quiet, f"trainer.accelerator={accelerator}", *overrides)


def turns(steps: dict[str, Callable[[], None]], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each step in each round; the first rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + warm):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm:
                taken[name].append(time.perf_counter() - started)
    return taken


def summed(taken: dict[str, list[float]], base: str = "bare") -> dict[str, dict[str, float]]:
    """The median time in milliseconds, and the median and quartiles of the ratio to the base within a round."""
    found = {}
    for name, values in taken.items():
        ratios = [own / other for own, other in zip(values, taken[base])]
        low, median, high = statistics.quantiles(ratios, n=4)
        ms = 1000 * statistics.median(values)
        found[name] = {"ms": round(ms, 2), "ratio": round(median, 3), "low": round(low, 3), "high": round(high, 3)}
    return found
