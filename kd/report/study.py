"""The content of a report, computed once: groups, teachers, gains, sweeps, predictions, and what is excluded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd.errors import InputError
from kd.files import relative
from kd.process.command import override
from kd.report.collect import Excluded, Run, collect, plan_of, quoted
from kd.report.groups import Group, groups, warning_of
from kd.report.images import StudyImages
from kd.report.predictions import Predictions, read_predictions
from kd.report.verdicts import Gain, Sweep, Teacher, gains, sweeps, teachers
from kd.run_folder.layout import CONFIG
from kd.run_folder.summary import names_in


@dataclass(frozen=True)
class Study:
    """The runs below one folder and their comparison.

    ``predictions`` maps a run's name to its predictions, ``missing`` a run or subject to the reason why something is
    not shown; ``warning`` is empty unless the best epoch was selected on the test set.
    """

    root: Path
    groups: tuple[Group, ...]
    teachers: tuple[Teacher, ...]
    gains: tuple[Gain, ...]
    sweeps: tuple[Sweep, ...]
    excluded: tuple[Excluded, ...]
    warning: str
    predictions: Mapping[str, Predictions]
    images: StudyImages | None
    missing: Mapping[str, str]

    @property
    def students(self) -> list[Group]:
        """Scratch and the methods."""
        return [group for group in self.groups if group.role != "teacher"]

    @property
    def judged(self) -> list[Group]:
        """Scratch and the methods with a verdict: of a sweep, only the selected setting."""
        methods = {gain.group.label for gain in self.gains}
        return [group for group in self.students if group.role == "scratch" or group.label in methods]

    @property
    def first(self) -> Run:
        """Any run, for properties that all runs share."""
        return (self.students or list(self.groups))[0].first

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, or the class numbers as text."""
        if self.images:
            return tuple(self.images.names)
        return names_in({"data": self.first.data}) or tuple(str(c) for c in range(self.first.data["classes"]))

    def predictions_of(self, group: Group) -> dict[int, Predictions]:
        """The saved predictions of a group's runs, by seed."""
        return {run.seed: self.predictions[run.name] for run in group.runs if run.name in self.predictions}

    def teacher_predictions(self) -> Predictions | None:
        """The saved predictions that include a teacher's, of the run with the highest agreement with its teacher."""
        runs = [run for group in self.judged for run in group.runs if run.name in self.predictions]
        with_teacher = [run for run in runs if self.predictions[run.name].teacher is not None]
        best = max(with_teacher, key=lambda run: run.score("test", "agreement") or 0.0, default=None)
        return self.predictions[best.name] if best else None

    def pairs(self) -> Iterator[tuple[Gain, list[Predictions], list[Predictions]]]:
        """Each method with its predictions and scratch's, for the seeds that both have."""
        for gain in self.gains:
            if gain.scratch is None:
                continue
            ours, base = self.predictions_of(gain.group), self.predictions_of(gain.scratch)
            if both := sorted(set(ours) & set(base)):
                yield gain, [ours[seed] for seed in both], [base[seed] for seed in both]


def read_study(root: Path) -> Study:
    """Reads and compares all runs below a folder.

    Raises:
        InputError: no finished run, or runs on different data.
    """
    runs, excluded = collect(root)
    every, repeats = groups(runs)
    all_teachers = teachers(every)
    missing: dict[str, str] = {}
    predictions = _predictions(every, missing)
    images = _images(every, predictions, missing)
    return Study(
        root,
        tuple(every),
        tuple(all_teachers),
        tuple(gains(every, all_teachers)),
        tuple(sweeps(every)),
        (*excluded, *repeats),
        warning_of(every),
        predictions,
        images,
        missing,
    )


def commands(study: Study) -> list[tuple[str, list[str]]]:
    """The commands that reproduce each group, by label; first the whole comparison if a single command made it."""
    parents = {parent for group in study.groups for run in group.runs for parent in run.folder.parents}
    inside = sorted(parent for parent in parents if parent.is_relative_to(study.root))
    plans = [words for folder in inside if (words := plan_of(folder)[0]) is not None]
    whole = [("the whole comparison", [quoted("kd-compare", words) for words in plans])] if plans else []
    return whole + [(group.label, _group_commands(group)) for group in study.groups if group.role != "teacher"]


def _group_commands(group: Group) -> list[str]:
    overrides = [run.overrides for run in group.runs]
    common = {tuple(word for word in words if not word.startswith("seed=")) for words in overrides if words is not None}
    if None not in overrides and len(common) == 1:
        (words,) = common
        multirun = ("-m",) if len(group.runs) > 1 else ()
        return [quoted("kd-train", (*multirun, *words, "seed=" + ",".join(map(str, group.seeds))))]
    return [_run_command(run) for run in group.runs]


def _run_command(run: Run) -> str:
    if run.overrides is not None:
        return quoted("kd-train", run.overrides)
    if not run.config:
        return f"# {run.name} has no {CONFIG}"
    folder = relative(run.folder.resolve())
    path = shlex.quote(str(folder)) if folder.is_absolute() else f'"$PWD"/{shlex.quote(str(folder))}'
    words = ("--config-name", CONFIG.removesuffix(".yaml"), override("hydra.run.dir", f"runs/again/{run.name}"))
    return quoted("kd-train", words).replace("kd-train", f"kd-train --config-path {path}", 1)


def _predictions(every: list[Group], missing: dict[str, str]) -> dict[str, Predictions]:
    predictions: dict[str, Predictions] = {}
    absent = []
    for run in [run for group in every if group.role != "teacher" for run in group.runs]:
        try:
            saved = read_predictions(run.folder, run.data["classes"])
        except InputError as error:
            missing[run.name] = f"{run.name}: {error}"
            continue
        if saved is None:
            absent.append(run.name)
        elif any(not np.array_equal(saved.labels, other.labels) for other in list(predictions.values())[:1]):
            missing[run.name] = f"{run.name}: the labels of its predictions differ from those of the other runs"
        else:
            predictions[run.name] = saved
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        missing["predictions"] = f"Runs without saved predictions: {', '.join(absent[:3])}{more}."
    return predictions


def _images(every: list[Group], predictions: Mapping[str, Predictions], missing: dict[str, str]) -> StudyImages | None:
    if not predictions:
        return None
    run = next(run for group in every for run in group.runs if run.name in predictions)
    try:
        images = StudyImages(run.summary)
        images.check(predictions[run.name].labels)
    except (InputError, OSError) as error:
        missing["images"] = f"The test images are not shown: {error}"
        return None
    return images
