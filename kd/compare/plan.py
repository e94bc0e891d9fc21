"""The runs of a comparison. Every cell is an ordinary run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kd.callbacks.position import sha256_of
from kd.distill.identity import differing, files_of, matches, study_key
from kd.distill.spec import TeacherSpec
from kd.errors import InputError
from kd.models.names import name_of
from kd.run_folder.layout import CONFIG, SUMMARY
from kd.run_folder.summary import is_finished, read_config, read_summary
from kd.train import assemble
from kd.train.checks import check
from kd.train.pipeline import train, with_weights

SCRATCH = "scratch"
SHUFFLED = "shuffled"
DERIVED = ("data.*", "teacher.classes", "teacher.outputs", "teacher.members.*.classes", "teacher.members.*.outputs")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: ``label`` in tables, ``role`` (``scratch`` or ``student``), seed and overrides."""

    label: str
    role: str
    seed: int
    overrides: tuple[str, ...]

    def words(self, study: str, common: Sequence[str]) -> list[str]:
        """The cell's overrides of ``kd-train``; overrides of teacher and objective do not apply to scratch."""
        words = [word for word in common if self.role != SCRATCH or not _is_of_distillation(word)]
        cell = {"study": study, "role": self.role, "label": self.label, "seed": self.seed}
        node = ",".join(f"{key}:{json.dumps(value)}" for key, value in cell.items())
        return [*words, *self.overrides, f"seed={self.seed}", f"cell={{{node}}}", f"hydra.sweep.subdir={self.folder}"]

    @property
    def folder(self) -> str:
        """The run folder, relative to the study's folder."""
        return f"{self.label}/{self.seed}"


def plan(
    objectives: Sequence[str], seeds: int | Sequence[int], shuffled: bool, variants: Mapping[str, Sequence[str]]
) -> list[Cell]:
    """The cells, seed by seed: scratch, each objective, the control, and the variants.

    Args:
        objectives: names in ``configs/objective``.
        seeds: the number of seeds, counted from 0, or a list of seeds.
        shuffled: whether to add the first objective with the teacher's logits shuffled across samples.
        variants: overrides of ``kd-train`` by label.

    Raises:
        InputError: no seeds or objective, or a label that is in use or contains other characters.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers) or not all(isinstance(s, int) and s >= 0 for s in numbers):
        raise InputError(f"seeds must be a count of at least 1, or a list of different whole numbers, got {seeds}")
    if not [name for name in objectives if name != "ce"]:
        raise InputError("objective: name at least one to compare with scratch, for example objective=[kd,dkd]")
    named: dict[str, tuple[str, tuple[str, ...]]] = {SCRATCH: (SCRATCH, ("objective=ce", "teacher=none"))}
    named |= {name: ("student", (f"objective={name}",)) for name in objectives if name != "ce"}
    if shuffled:
        named |= {SHUFFLED: ("student", (f"objective={objectives[0]}", "teacher.shuffle=true"))}
    for label, overrides in variants.items():
        if label in named or not label.replace("_", "").replace("-", "").isalnum():
            raise InputError(
                f"variants.{label}: a label consists of letters, digits, - and _, and is not one of {', '.join(named)}"
            )
        named[label] = ("student", tuple(overrides))
    return [Cell(label, role, seed, words) for seed in numbers for label, (role, words) in named.items()]


class Prepared(NamedTuple):
    """A study's name, a digest of its configuration, and the data's sha256 by label, if known."""

    name: str
    contents: dict[str, str | None]


def prepare(configs: Mapping[str, Mapping[str, Any]], words: Sequence[str]) -> Prepared:
    """Checks the configuration of each label and derives the study's name.

    The name depends on the configuration, except for objectives and seeds.

    Args:
        configs: the configuration by label.
        words: the overrides that all cells share.

    Raises:
        InputError: an invalid configuration.
    """
    first = _first(configs)
    if not TeacherSpec.parse(first["teacher"]).members:
        raise InputError("teacher=none: a comparison needs a teacher")
    contents: dict[str, str | None] = {}
    for label, config in configs.items():  # all of them before any training
        check(config)
        data = assemble.data(config)
        contents[label] = sha256_of(data)
        assemble.distiller(config, data, assemble.teacher(config, data, weights=False))
    content = next(contents[label] for label, config in configs.items() if config is first)
    return Prepared(f"{name_of(first['student'])}-{study_key(first, words, content)}", contents)


def teach(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Trains the teacher of a comparison if necessary and if a single process can."""
    first = _first(configs)
    if first["trainer"].get("devices", 1) == 1:  # else the processes of the first run train it
        with_weights(first, assemble.data(first))


def _first(configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(config for label, config in configs.items() if label != SCRATCH)


def run_cell(config: Mapping[str, Any], folder: Path, objective: str | None) -> dict[str, Any]:
    """Runs one cell, or resumes it."""
    if (folder / CONFIG).is_file():
        check_same(config, folder)
    changed = config.get("resume_data") == "changed"
    return train(config, folder, resume=True, data_changed=changed, objective=objective)


def check_same(config: Mapping[str, Any], folder: Path, content: str | None = None) -> None:
    """Checks that a run has this configuration, except for its seed and options that do not affect results.

    Args:
        config: a cell's configuration.
        folder: the run folder.
        content: the data's current sha256, compared with that of a finished run; None if unknown.

    Raises:
        InputError: the run has another configuration; the first differing key is named.
    """
    try:
        saved = read_config(folder)
    except InputError as error:
        raise InputError(f"{error}; delete {folder} to run it again") from error
    # the run itself fills in a teacher's checkpoint and what depends on the data
    for key, value, before in differing(config, saved, ("seed", "teacher.checkpoint", "teacher.members.*.checkpoint")):
        if value is not None or not matches(key, DERIVED):
            raise InputError(f"{folder} contains a run with {key}={before}, not {value}; set another study=FOLDER")
    files = (saved.get("about") or {}).get("files") or {}
    for key, sha256 in files_of(config).items():
        if files.get(key, sha256) != sha256:
            raise InputError(f"{folder} contains a run with other weights in {key}; set another study=FOLDER")
    summary: dict[str, Any] = {}
    if content is not None and (folder / SUMMARY).is_file():
        summary = read_summary(folder)
    if summary and summary["seed"] == config["seed"] and summary["data"].get("sha256", content) != content:
        raise InputError(f"{folder} contains a run on other data; set another study=FOLDER")


def _is_of_distillation(word: str) -> bool:
    name = word.lstrip("+~").partition("=")[0]
    return name.startswith(("teacher", "objective", "loss@")) and name != "teachers"


def unfinished(cells: Iterable[Cell], study: Path) -> list[Cell]:
    """The cells without a finished run."""
    return [cell for cell in cells if not is_finished(study / cell.folder)]
