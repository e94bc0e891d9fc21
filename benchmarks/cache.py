"""What the cache of teacher's answers costs and saves: whole training steps, batch 64, images of CIFAR-100's shape.

    python benchmarks/cache.py [--quick] [--json FILE]

In one process, round after round, each in turn: the student alone (cross-entropy, no teacher), the live teacher, the
first run (every view is new: the teacher runs and its answers are written), and a later run (every view has been
met). Printed are medians over rounds of ratios within a round, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from objectives import seconds

import kd
from kd import Arrays, Batch, Data, Distiller, Frozen, Memory, Normalized, Objective, Term
from kd.distill.cached import CacheOptions, cached
from kd.losses import CE, KL

PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
RATIOS = (("later", "student"), ("first", "live"), ("later", "live"))


def step_of(kind: str, pair: tuple[str, str], data: Data, batches: Iterator[Batch], root: Path) -> Callable[[], None]:
    """One training step as a function; ``kind`` is student, live, first or later."""
    torch.manual_seed(0)
    teacher, student = (Normalized(kd.models[name](classes=100), data.mean, data.std) for name in pair)
    frozen = None if kind == "student" else Frozen(teacher)
    if frozen is not None and kind != "live":
        frozen = cached(frozen, data, "auto", CacheOptions(root=str(root / kind)), pair[0], "32-true")  # type: ignore[assignment]
    terms = {"ce": Term(CE(), 0.1)} | ({} if frozen is None else {"kd": Term(KL(T=4.0), 0.9)})
    distiller = Distiller(student, frozen, Objective(terms), None, data.shape, data.classes).train()
    optimiser = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
    known = next(batches)

    def step() -> None:
        batch = data.memory.augment(next(batches), 0, 0) if kind != "later" else data.memory.augment(known, 0, 0)
        answer = frozen(batch) if frozen is not None else None
        total, _ = distiller.objective(distiller.taps(batch.images), batch.labels, answer, batch.index)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()

    step()  # so that a later run's views are met
    return step


def measure(pair: tuple[str, str], rounds: int) -> dict[str, dict[str, float]]:
    """Median, smallest and largest of each ratio."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (12_800, 3, 32, 32)).to(torch.uint8)
    labels = torch.arange(12_800) % 100
    arrays = Arrays((images, labels), (images[:1000], labels[:1000]), tuple(map(str, range(100))))
    data = Data(Memory(arrays, val="test", pad=4, flip=True))
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("student", "live", "first", "later")
        batches = {kind: iter(data.memory.loader("train", seed)) for seed, kind in enumerate(kinds)}
        steps = {kind: step_of(kind, pair, data, batches[kind], Path(folder)) for kind in kinds}
        times: list[dict[str, float]] = []
        for turn in range(rounds + 2):
            taken = {kind: seconds(step) for kind, step in steps.items()}
            if turn >= 2:  # the first rounds warm up
                times.append(taken)
    found = {}
    for one, other in RATIOS:
        ratios = [taken[one] / taken[other] for taken in times]
        spread = {"low": min(ratios), "median": statistics.median(ratios), "high": max(ratios)}
        found[f"{one} / {other}"] = {name: round(value, 3) for name, value in spread.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small pair and few rounds: a minute")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args()
    pairs = (("resnet20", "resnet8"),) if asked.quick else PAIRS
    results = {"->".join(pair): measure(pair, 20 if asked.quick else asked.rounds) for pair in pairs}
    for name, ratios in results.items():
        for what, ratio in ratios.items():
            print(f"{name:24} {what:18} {ratio['median']:.3f}  ({ratio['low']:.2f} to {ratio['high']:.2f})")
    if asked.json:
        about = f"batch 64, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"
        asked.json.write_text(json.dumps({"measured": about, "ratios": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
