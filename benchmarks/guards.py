"""What the guards of a step cost: the look at the gradient, the seed of each step, the clock of checkpoints.

    python benchmarks/guards.py --rounds 150

A resnet20 alone, the cheapest step there is, at batch 64 of CIFAR's shape, through Lightning's Trainer. With and
without the guards, a step each in turn; the median of each round's ratio, with its quartiles. Then a checkpoint, as a
share of an epoch of 45,000 images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import about
from paced import Fit

from kd import Arrays, Data, Memory
from kd.cli import compose

COMMON = (
    *("student=resnet20", "teacher=none", "objective=ce", "data=cifar100", "trainer.enable_progress_bar=false"),
    *("trainer.max_epochs=1000", "logger=none", "callbacks.pictures=null"),
)
UNGUARDED = ("callbacks.finite=null", "callbacks.last=null")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=150)
    rounds = parser.parse_args().rounds
    images = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(2048) % 100
    arrays = Arrays((images, labels), (images[:200], labels[:200]), tuple(map(str, range(100))))
    data = Data(Memory(arrays, batch_size=64, pad=4, flip=True))
    with tempfile.TemporaryDirectory() as folder:
        guarded = Fit(compose(*COMMON), data, folder)
        plain = Fit(compose(*COMMON, *UNGUARDED), Data(data.memory), folder)
        plain.distiller.on_train_batch_start = lambda *_: None  # type: ignore[method-assign]
        ratios, steps = [], []
        for turn in range(rounds + 10):
            taken = {}
            for fit in (guarded, plain) if turn % 2 else (plain, guarded):
                started = time.perf_counter()
                fit.step()
                taken[fit] = time.perf_counter() - started
            if turn >= 10:
                ratios.append(taken[guarded] / taken[plain])
                steps.append(taken[plain])
        saves = []
        for _ in range(10):
            started = time.perf_counter()
            guarded.trainer.save_checkpoint(Path(folder) / "last.ckpt", weights_only=False)
            saves.append(time.perf_counter() - started)
        guarded.stop()
        plain.stop()
    low, middle, high = statistics.quantiles(ratios, n=4)
    step, save = statistics.median(steps), statistics.median(saves)
    print(about(torch.device("cpu")))
    print(f"step with guards / without: {middle:.4f} (quartiles {low:.4f} to {high:.4f}), {rounds} rounds")
    print(f"a checkpoint: {1e3 * save:.1f} ms, {save / (step * 45_000 / 64):.3%} of an epoch of 45,000 images")


if __name__ == "__main__":
    main()
