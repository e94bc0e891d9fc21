"""The plan of a comparison: which runs answer whether distillation helped. Every cell is an ordinary run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd import assemble, run
from kd.errors import InputError
from kd.ranges import check
from kd.train import train, with_weights

SCRATCH = "scratch"
SHUFFLED = "shuffled"


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: its ``label`` in tables, ``role`` (``scratch`` or ``student``), seed and overrides."""

    label: str
    role: str
    seed: int
    overrides: tuple[str, ...]

    def words(self, study: str, given: Sequence[str]) -> list[str]:
        """The overrides of ``kd-train``; those of the teacher and of objectives are not for the scratch student."""
        kept = [word for word in given if self.role != SCRATCH or not _of_teaching(word)]
        about = {"study": study, "role": self.role, "label": self.label, "seed": self.seed}
        said = ",".join(f"{key}:{json.dumps(value)}" for key, value in about.items())
        return [*kept, *self.overrides, f"seed={self.seed}", f"cell={{{said}}}", f"hydra.sweep.subdir={self.folder}"]

    @property
    def folder(self) -> str:
        """Where it lies in the study's folder."""
        return f"{self.label}/{self.seed}"


def plan(
    objectives: Sequence[str], seeds: int | Sequence[int], shuffled: bool, variants: Mapping[str, Sequence[str]]
) -> list[Cell]:
    """The cells, seed by seed: scratch, each objective, the control, and variants of one's own.

    Args:
        objectives: names in ``configs/objective``.
        seeds: how many, counted from 0, or which.
        shuffled: whether the first objective is also run with each sample getting another's answer.
        variants: label to overrides of ``kd-train``.

    Raises:
        InputError: no seeds, or a label that is taken or no plain name.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers) or not all(isinstance(s, int) and s >= 0 for s in numbers):
        raise InputError(f"seeds must be a count of at least 1, or a list of different whole numbers, got {seeds}")
    if not [name for name in objectives if name != "ce"]:
        raise InputError("objective must name what is compared with scratch, for example objective=[kd,dkd]")
    named: dict[str, tuple[str, tuple[str, ...]]] = {SCRATCH: (SCRATCH, ("objective=ce", "teacher=none"))}
    named |= {name: ("student", (f"objective={name}",)) for name in objectives if name != "ce"}
    if shuffled:
        named |= {SHUFFLED: ("student", (f"objective={objectives[0]}", "teacher.shuffle=true"))}
    for label, overrides in variants.items():
        if label in named or not label.replace("_", "").replace("-", "").isalnum():
            raise InputError(
                f"variants.{label}: a label is letters, digits, - and _, and not one of {', '.join(named)}"
            )
        named[label] = ("student", tuple(overrides))
    return [Cell(label, role, seed, words) for seed in numbers for label, (role, words) in named.items()]


def prepare(configs: Mapping[str, Mapping[str, Any]], words: Sequence[str]) -> str:
    """Checks each label's configuration and trains the teacher if it has to be, and one process can do it.

    What comes back is a name for the study, the same for the same configuration apart from objectives and seeds;
    ``words`` are the overrides that all of them share.

    Raises:
        InputError: anything in them that cannot work.
    """
    first = next(config for label, config in configs.items() if label != SCRATCH)
    if not assemble.members(first["teacher"]):
        raise InputError("teacher=none: a comparison needs a teacher")
    for config in configs.values():  # all of them, before the first costs time
        check(config)
        data = assemble.data(config)
        assemble.distiller(config, data, assemble.teacher(config, data, weights=False))
    if first["trainer"].get("devices", 1) == 1:  # else by the processes of the first run that it teaches
        with_weights(first, assemble.data(first))
    free = ("cell", "seed", "logger", "callbacks", "objective", "pair")
    plainly = {key: value for key, value in first.items() if key not in free}
    plainly |= {"words": sorted(word for word in words if word.startswith(("objective.", "pair.")))}
    digest = hashlib.sha256(json.dumps(plainly, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{run.name_of(first['student'])}-{digest}"


def fill(config: Mapping[str, Any], folder: Path, objective: str | None) -> dict[str, Any]:
    """Runs one cell, or goes on with it where it was stopped."""
    if (folder / run.CONFIG).is_file():
        check_same(config, folder)
    return train(config, folder, go_on=True, objective=objective, cell=dict(config["cell"]))


def check_same(config: Mapping[str, Any], folder: Path) -> None:
    """Whether a run is of this configuration, apart from its seed.

    Raises:
        InputError: it is not; the first key that differs is named.
    """
    try:
        known = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/config.yaml is absent or damaged; delete {folder} to run it again") from error
    free = ("cell", "seed", "about")
    here, there = (_flat({k: v for k, v in part.items() if k not in free}) for part in (config, known))
    differing = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    # a teacher's checkpoint is filled in by the run, and a bar shapes no result
    filled = re.compile(r"teacher\.(.+\.)?checkpoint|.*\.enable_progress_bar")
    differing = [key for key in differing if not filled.fullmatch(key)]
    # what is left to the data is filled in by the run too
    scaled = re.compile(r"data\..+|teacher\.(.+\.)?(classes|outputs)")
    differing = [key for key in differing if here.get(key) is not None or not scaled.fullmatch(key)]
    if differing:
        key = differing[0]
        raise InputError(f"{folder} holds a run with {key}={there.get(key)}, not {here.get(key)}; give another study=")


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix.rstrip("."): node}
    return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}{name}.").items()}


def _of_teaching(word: str) -> bool:
    name = word.lstrip("+~").partition("=")[0]
    return name.startswith(("teacher", "objective", "loss@")) and name != "teachers"


def left_of(cells: Iterable[Cell], study: Path) -> list[Cell]:
    """The cells that have no finished run yet."""
    return [cell for cell in cells if not (study / cell.folder / run.SUMMARY).is_file()]
