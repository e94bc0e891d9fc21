"""Images per second of kd's batches in memory beside torchvision's PIL pipeline, at CIFAR's shape.

    python benchmarks/input.py --json FILE

Both crop with padding 4, flip, and end in normalised float batches of 128, on one torch thread. In each round kd's
pass stands right beside a pass of the pipeline with 0, 1 and 2 workers over as many images, so that whatever else the
machine does falls on all alike; what is printed is the median over rounds of kd's speed / the pipeline's, with the
smallest and the largest. Another line compares ``data.scale`` and ``data.jitter`` with torchvision's transforms of the
same, which run sample by sample in ``data.transform``; the last is the share that kd's input takes of a training step
of resnet20.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import kd
from kd import Arrays, Memory, Normalized

BATCH, WORKERS = 128, (0, 1, 2)
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Pipeline(Dataset[tuple[Tensor, int]]):
    """torchvision's way: an array becomes a PIL image, then a tensor."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def ours(memory: Memory, normalise: Callable[[Tensor], Tensor], device: torch.device) -> Iterable[Tensor]:
    """One pass of kd's training batches, augmented and normalised on the device."""
    for batch in memory.loader("train", seed=0, device=device):
        moved = batch._replace(images=batch.images.to(device), index=batch.index.to(device))
        yield normalise(memory.augment(moved, seed=0, epoch=0).images)


def seconds(batches: Iterable[object], device: torch.device) -> float:
    """The time of one pass."""
    started = time.perf_counter()
    for _ in batches:
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(count: int, rounds: int) -> dict[str, dict[str, float]]:
    """kd's speed over the pipeline's with each number of workers, and both in images per second."""
    memory, images, labels = made(count)
    cpu = torch.device("cpu")
    normalise = Normalized(torch.nn.Identity(), MEAN, STD)
    pipelines = {
        workers: DataLoader(
            Pipeline(images, labels), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        for workers in WORKERS
    }
    speed: dict[int, list[tuple[float, float]]] = {workers: [] for workers in WORKERS}
    for turn in range(rounds + 1):
        for workers, pipeline in pipelines.items():
            own, theirs = seconds(ours(memory, normalise, cpu), cpu), seconds(pipeline, cpu)
            if turn:  # the first round warms up and starts the workers
                speed[workers].append((count / own, count / theirs))
    return {f"{workers} workers": summed(pairs) for workers, pairs in speed.items()}


def summed(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The ratio's median, smallest and largest, and the median speeds."""
    ratios = [own / theirs for own, theirs in pairs]
    found = {"low": min(ratios), "median": statistics.median(ratios), "high": max(ratios)}
    own, theirs = (round(statistics.median(speeds)) for speeds in zip(*pairs))
    return {**{key: round(value, 2) for key, value in found.items()}, "kd": own, "pipeline": theirs}


def strong_views(count: int, rounds: int) -> dict[str, float]:
    """The speed of resized crops and jitter of whole batches over that of torchvision's, sample by sample."""
    module = "torchvision.transforms.v2."
    crop = {"_target_": module + "RandomResizedCrop", "size": [32, 32], "scale": [0.25, 1.0]}
    jitter = {"_target_": module + "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    whole, single = (
        made(count, **some)[0] for some in ({"scale": [0.25, 1.0], "jitter": 0.4}, {"transform": [crop, jitter]})
    )
    cpu, pairs = torch.device("cpu"), []
    for turn in range(rounds + 1):
        own, theirs = (seconds(ours(memory, lambda images: images, cpu), cpu) for memory in (whole, single))
        pairs += [(count / own, count / theirs)] if turn else []
    return summed(pairs)


def made(count: int, **more: Any) -> tuple[Memory, Tensor, Tensor]:
    """Random images of CIFAR's shape, in memory."""
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(count) % 100
    arrays = Arrays((images, labels), (images[:100], labels[:100]), tuple(map(str, range(100))))
    options = {"batch_size": BATCH, "val": "test", "pad": 4, "flip": True, "resident": True, **more}
    return Memory(arrays, **options), images, labels


def share_of_step(rounds: int, device: torch.device) -> float:
    """The time of kd's input for a batch over that of a training step of resnet20, medians over rounds."""
    memory, images, labels = made(BATCH * 8)
    network = Normalized(kd.models["resnet20"](classes=100), MEAN, STD).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    batch, answers = images[:BATCH].to(device), labels[:BATCH].to(device)

    def steps() -> Iterable[None]:
        for _ in range(8):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(batch), answers).backward()
            optimizer.step()
            yield

    pairs = []
    for turn in range(rounds + 1):
        pair = seconds(ours(memory, lambda images: images, device), device), seconds(steps(), device)
        pairs += [pair] if turn else []
    return statistics.median(own / step for own, step in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds: half a minute")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    count, rounds = (2560, 3) if asked.quick else (10240, asked.rounds)
    found = measure(count, rounds)
    for workers, about in found.items():
        spread = f"{about['low']:.1f} to {about['high']:.1f}"
        speeds = f"{about['kd']:,.0f} and {about['pipeline']:,.0f} images/s"
        print(f"kd beside the PIL pipeline with {workers}: {about['median']:5.1f} times ({spread}), {speeds}")
    strong = strong_views(count // 4, rounds)
    spread = f"{strong['low']:.1f} to {strong['high']:.1f}"
    print(f"data.scale and data.jitter beside data.transform of the same: {strong['median']:.1f} times ({spread})")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share = share_of_step(rounds, device)
    print(f"kd's input takes {share:.2%} of the time of a resnet20 step, batch {BATCH}, on {device.type}")
    if asked.json:
        place = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
        about = f"3x32x32, batch {BATCH}, torch {torch.__version__}, 1 thread, {place}"
        asked.json.write_text(
            json.dumps({"measured": about, "ratios": found, "strong": strong, "share_of_step": share}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
