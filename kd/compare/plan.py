"""The plan of a comparison: which runs answer whether distillation helped. Every cell is an ordinary run."""

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
SCALED = ("data.*", "teacher.classes", "teacher.outputs", "teacher.members.*.classes", "teacher.members.*.outputs")


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


class Prepared(NamedTuple):
    """A study's name, the same for the same configuration, and of each label the data's sha256, where it is known."""

    name: str
    contents: dict[str, str | None]


def prepare(configs: Mapping[str, Mapping[str, Any]], words: Sequence[str]) -> Prepared:
    """Checks each label's configuration.

    What comes back is a name for the study, the same for the same configuration apart from objectives and seeds;
    ``words`` are the overrides that all of them share.

    Raises:
        InputError: anything in them that cannot work.
    """
    first = _first(configs)
    if not TeacherSpec.parse(first["teacher"]).members:
        raise InputError("teacher=none: a comparison needs a teacher")
    contents: dict[str, str | None] = {}
    for label, config in configs.items():  # all of them, before the first costs time
        check(config)
        data = assemble.data(config)
        contents[label] = sha256_of(data)
        assemble.distiller(config, data, assemble.teacher(config, data, weights=False))
    content = next(contents[label] for label, config in configs.items() if config is first)
    return Prepared(f"{name_of(first['student'])}-{study_key(first, words, content)}", contents)


def teach(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Trains the teacher of a comparison if it has to be, and one process can do it."""
    first = _first(configs)
    if first["trainer"].get("devices", 1) == 1:  # else by the processes of the first run that it teaches
        with_weights(first, assemble.data(first))


def _first(configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(config for label, config in configs.items() if label != SCRATCH)


def run_cell(config: Mapping[str, Any], folder: Path, objective: str | None) -> dict[str, Any]:
    """Runs one cell, or goes on with it where it was stopped."""
    if (folder / CONFIG).is_file():
        check_same(config, folder)
    changed = config.get("resume_data") == "changed"
    return train(config, folder, go_on=True, data_changed=changed, objective=objective, cell=dict(config["cell"]))


def check_same(config: Mapping[str, Any], folder: Path, content: str | None = None) -> None:
    """Whether a run is of this configuration, apart from its seed and from what shapes no result.

    Args:
        config: a cell's.
        folder: of the run.
        content: the data's sha256 now, to be compared with a finished run's; None where it is not known.

    Raises:
        InputError: it is not; the first key that differs is named.
    """
    try:
        saved = read_config(folder)
    except InputError as error:
        raise InputError(f"{error}; delete {folder} to run it again") from error
    # a teacher's checkpoint is filled in by the run, and so is what is left to the data
    for key, here, there in differing(config, saved, ("seed", "teacher.checkpoint", "teacher.members.*.checkpoint")):
        if here is not None or not matches(key, SCALED):
            raise InputError(f"{folder} holds a run with {key}={there}, not {here}; give another study=")
    then = (saved.get("about") or {}).get("files") or {}
    for key, sha256 in files_of(config).items():
        if then.get(key, sha256) != sha256:
            raise InputError(f"{folder} holds a run whose {key} held other weights than now; give another study=")
    summary: dict[str, Any] = {}
    if content is not None and (folder / SUMMARY).is_file():
        summary = read_summary(folder)
    if summary and summary["seed"] == config["seed"] and summary["data"].get("sha256", content) != content:
        raise InputError(f"{folder} holds a run on other data than there is now; give another study=")


def _of_teaching(word: str) -> bool:
    name = word.lstrip("+~").partition("=")[0]
    return name.startswith(("teacher", "objective", "loss@")) and name != "teachers"


def unfinished(cells: Iterable[Cell], study: Path) -> list[Cell]:
    """The cells that have no finished run yet."""
    return [cell for cell in cells if not is_finished(study / cell.folder)]
