"""The cost of every objective beside plain KD: resnet32x4 teaches resnet8x4, batch 64, images of CIFAR's shape.

    python benchmarks/objectives.py --json docs/costs.json

One process builds all objectives and times their training steps in turn, round after round, each right after a step
of kd, so that whatever else the machine does falls on both alike; what is printed is the median over rounds of (time of
a step / time of kd's step just before), with the smallest and the largest, and the parameters added.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import kd
from kd import Arrays, Batch, Data, Distiller, Memory
from kd.cli import compose
from kd.train import assemble

OBJECTIVES = sorted(path.stem for path in (kd.CONFIG_DIR / "objective").glob("*.yaml"))


def step_of(name: str, data: Data, batch: Batch, pair: tuple[str, str]) -> tuple[Callable[[], None], int]:
    """One training step of an objective as a function, and how many parameters it adds to the student's."""
    config = compose(f"objective={name}", f"teacher={pair[0]}", f"student={pair[1]}")
    student = assemble.network(config["student"], "student", data)
    objective = assemble.objective(config["objective"])
    labels = data.memory.parts["train"][1]
    objective.attach_data(len(labels), labels)
    teacher = assemble.teacher(config, data)
    distiller = Distiller(student, teacher, objective, None, data.shape, data.classes).train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3, momentum=0.9)
    epoch = max((term.start for _, term in objective.named_terms()), default=0)

    def step() -> None:
        answer = distiller.teacher(batch) if objective.uses_teacher and distiller.teacher is not None else None
        total, _ = objective(distiller.taps(batch.images), batch.labels, answer, batch.index, epoch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step, sum(p.numel() for p in objective.parameters())


def measure(rounds: int, pair: tuple[str, str], names: list[str]) -> dict[str, dict[str, float]]:
    """Median, smallest and largest of each objective's time over kd's."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2000, 3, 32, 32)).to(torch.uint8)
    labels = torch.arange(2000) % 100
    data = Data(Memory(Arrays((images, labels), (images, labels), tuple(map(str, range(100)))), val="test"))
    batch = Batch(images[:64], labels[:64], torch.arange(64))
    steps = {name: step_of(name, data, batch, pair) for name in ("kd", *names)}
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, (step, _) in steps.items():
            before, own = seconds(steps["kd"][0]), seconds(step)
            if turn:  # the first round warms up
                ratios[name].append(own / before)
    return {
        name: {
            "low": round(min(values), 2),
            "median": round(statistics.median(values), 2),
            "high": round(max(values), 2),
            "parameters": steps[name][1],
        }
        for name, values in ratios.items()
    }


def seconds(step: Callable[[], None]) -> float:
    """The time of one step."""
    started = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks and two rounds: a minute")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("objectives", nargs="*", default=OBJECTIVES)
    asked = parser.parse_args()
    pair = ("resnet20", "resnet8") if asked.quick else ("resnet32x4", "resnet8x4")
    costs = measure(2 if asked.quick else asked.rounds, pair, [name for name in asked.objectives if name != "kd"])
    for name, cost in sorted(costs.items(), key=lambda item: item[1]["median"]):
        spread = f"{cost['low']:.2f} to {cost['high']:.2f}"
        print(f"{name:14} {cost['median']:6.2f} x kd  ({spread})  {cost['parameters']:>10,} parameters added")
    if asked.json:
        about = f"{pair[0]} -> {pair[1]}, batch 64, torch {torch.__version__}, {platform.machine()}, "
        about += f"{torch.get_num_threads()} threads" if not torch.cuda.is_available() else torch.cuda.get_device_name()
        asked.json.write_text(json.dumps({"measured": about, "costs": costs}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
