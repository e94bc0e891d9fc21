"""Every objective and every experiment composes, builds and learns."""

from __future__ import annotations

import copy
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch

import kd
from kd import Arrays, Batch, Data, Distiller, Memory
from kd.cli import compose
from kd.compare.launch import _composed, parse_options
from kd.compare.plan import plan
from kd.train import assemble

pytestmark = pytest.mark.usefixtures("hashed_once")
NAMES = {
    group: sorted(p.stem for p in (kd.CONFIG_DIR / group).rglob("*.yaml")) for group in ("objective", "data", "debug")
}
EXPERIMENTS = sorted(
    str(p.relative_to(kd.CONFIG_DIR / "experiment").with_suffix(""))
    for p in (kd.CONFIG_DIR / "experiment").rglob("*.yaml")
    if p.stem not in ("mutual", "mean_teacher", "ressl")  # their steps are not the plain distiller's: test_mutual.py
)


@cache
def composed_once(*overrides: str) -> dict:
    return compose(*overrides)


def composed(*overrides: str) -> dict:
    return copy.deepcopy(composed_once(*overrides))


def losses(config: dict, shape: list[int], classes: int, samples: int = 16, steps: int = 3) -> list[float]:
    """The total of a few training steps on one fixed batch."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (24, *shape)).to(torch.uint8)
    labels = torch.arange(24) % classes
    arrays = Arrays((images, labels), (images, labels), tuple(map(str, range(classes))))
    data = Data(Memory(arrays, batch_size=8, val="test"))
    student = assemble.network(config["student"], "student", data)
    teacher = assemble.teacher(config, data)
    objective = assemble.objective(config["objective"])
    objective.attach_data(len(labels), labels)
    distiller = Distiller(student, teacher, objective, None, shape, classes)
    batch = Batch(images[:samples], labels[:samples], torch.arange(samples))
    optimizer = torch.optim.Adam(distiller.parameters(), lr=2e-4)
    totals = []
    for _ in range(steps):
        answer = distiller.teacher(batch) if distiller.teacher is not None else None
        torch.manual_seed(0)
        total, _ = distiller.objective(distiller.taps(batch.images), batch.labels, answer, batch.index)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


# (teacher, student)
ALIKE, UNLIKE = ("resnet20", "resnet14"), ("wrn_16_2", "resnet8")


@pytest.mark.parametrize("pair", [ALIKE, UNLIKE], ids=["alike", "unlike"])
@pytest.mark.parametrize("name", NAMES["objective"])
def test_every_objective_learns(name: str, pair: tuple[str, str]) -> None:
    config = compose(f"objective={name}", f"teacher={pair[0]}", f"student={pair[1]}")
    totals = losses(config, [3, 16, 16], 10)
    assert totals[-1] < totals[0], totals


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_learns(name: str) -> None:
    offline = ["teacher.weights=null"] if name.startswith("imagenet/r") else []  # no download in a test
    shape = [1, 28, 28] if name.startswith("fashion_mnist") else [3, 32, 32]
    totals = losses(composed(f"experiment={name}", *offline), shape, 10, 8)
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("name", NAMES["data"])
def test_every_data_set_composes(name: str) -> None:
    node = compose(f"data={name}")["data"]
    assert {"_target_", "batch_size", "val"} <= set(node)


@pytest.mark.parametrize("name", NAMES["debug"])
def test_every_debug_state_composes(name: str) -> None:
    assert compose(f"debug={name}")["trainer"]["limit_train_batches"]


def test_an_objective_is_a_few_lines() -> None:
    for path in (kd.CONFIG_DIR / "objective").glob("*.yaml"):
        assert len(path.read_text().splitlines()) <= 16, path


def test_configs_hold_only_yaml() -> None:
    assert {p.suffix for p in Path(kd.CONFIG_DIR).rglob("*") if p.is_file()} == {".yaml"}


@pytest.mark.parametrize("name", ["mean_teacher", "mutual", *(Path(n).name for n in EXPERIMENTS if "_mnist/" in n)])
def test_the_comparison_that_an_experiment_names_has_cells_that_compose(name: str) -> None:
    path = kd.CONFIG_DIR / f"experiment/fashion_mnist/{name}.yaml"
    for line in path.read_text().splitlines():
        if line.startswith("# ") and "kd-compare" in line:
            words = line.partition("kd-compare ")[2].replace("data.root=FOLDER", "")
            own, rest = parse_options(shlex.split(words))
            for cell in plan(own.objective, own.seeds, own.shuffled, own.variants or {}):
                if cell.seed:  # the cells of other seeds differ in that number alone
                    continue
                assert assemble.objective(composed(*_composed(cell, rest))["objective"]).terms
