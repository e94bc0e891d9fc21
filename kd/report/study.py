"""All that a report says, found once: groups, teachers, gains, sweeps, predictions and what had to be left out."""

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
from kd.report.groups import Group, flag_of, groups
from kd.report.images import StudyImages
from kd.report.predictions import Predictions, evidence
from kd.report.verdicts import Gain, Sweep, Teacher, gains, sweeps, teachers
from kd.run_folder.layout import CONFIG
from kd.run_folder.summary import names_in


@dataclass(frozen=True)
class Study:
    """What was found below one folder."""

    root: Path
    groups: tuple[Group, ...]
    teachers: tuple[Teacher, ...]
    gains: tuple[Gain, ...]
    sweeps: tuple[Sweep, ...]
    left: tuple[Excluded, ...]
    flag: str
    kept: Mapping[str, Predictions]
    images: StudyImages | None
    missing: Mapping[str, str]

    @property
    def students(self) -> list[Group]:
        """Scratch and the methods."""
        return [group for group in self.groups if group.role != "teacher"]

    @property
    def judged(self) -> list[Group]:
        """Scratch and the methods that have a verdict: of a sweep, the chosen setting only."""
        methods = {gain.group.label for gain in self.gains}
        return [group for group in self.students if group.role == "scratch" or group.label in methods]

    @property
    def first(self) -> Run:
        """A run to ask for what all share."""
        return (self.students or list(self.groups))[0].first

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, or their numbers."""
        if self.images:
            return tuple(self.images.names)
        return names_in({"data": self.first.data}) or tuple(str(c) for c in range(self.first.data["classes"]))

    def seen(self, group: Group) -> dict[int, Predictions]:
        """Seed to the predictions of the runs that kept theirs."""
        return {run.seed: self.kept[run.name] for run in group.runs if run.name in self.kept}

    def taught(self) -> Predictions | None:
        """The predictions of a run that kept its teacher's too; of the run that agrees most with it."""
        runs = [run for group in self.judged for run in group.runs if run.name in self.kept]
        known = [run for run in runs if self.kept[run.name].teacher is not None]
        best = max(known, key=lambda run: run.score("test", "agreement") or 0.0, default=None)
        return self.kept[best.name] if best else None

    def pairs(self) -> Iterator[tuple[Gain, list[Predictions], list[Predictions]]]:
        """Each method with its predictions and those of scratch, for the seeds that both have."""
        for gain in self.gains:
            if gain.scratch is None:
                continue
            ours, base = self.seen(gain.group), self.seen(gain.scratch)
            if both := sorted(set(ours) & set(base)):
                yield gain, [ours[seed] for seed in both], [base[seed] for seed in both]


def study(root: Path) -> Study:
    """Reads and compares all runs below a folder.

    Raises:
        InputError: no finished run, or runs on different data.
    """
    runs, left = collect(root)
    every, repeats = groups(runs)
    known = teachers(every)
    missing: dict[str, str] = {}
    kept = _predictions(every, missing)
    images = _images(every, kept, missing)
    return Study(
        root,
        tuple(every),
        tuple(known),
        tuple(gains(every, known)),
        tuple(sweeps(every)),
        (*left, *repeats),
        flag_of(every),
        kept,
        images,
        missing,
    )


def commands(found: Study) -> list[tuple[str, list[str]]]:
    """What to type to repeat each group; the whole comparison first where one command made it."""
    places = {place for group in found.groups for run in group.runs for place in run.folder.parents}
    inside = sorted(place for place in places if place.is_relative_to(found.root))
    plans = [words for place in inside if (words := plan_of(place)[0]) is not None]
    whole = [quoted("kd-compare", words) for words in plans]
    listed = [("the whole comparison", whole)] if whole else []
    return listed + [(group.label, _again(group)) for group in found.groups if group.role != "teacher"]


def _again(group: Group) -> list[str]:
    typed = [run.overrides for run in group.runs]
    rest = {tuple(word for word in words if not word.startswith("seed=")) for words in typed if words is not None}
    if None not in typed and len(rest) == 1:
        (words,) = rest
        many = ("-m",) if len(group.runs) > 1 else ()
        return [quoted("kd-train", (*many, *words, "seed=" + ",".join(map(str, group.seeds))))]
    return [_one(run) for run in group.runs]


def _one(run: Run) -> str:
    if run.overrides is not None:
        return quoted("kd-train", run.overrides)
    if not run.config:
        return f"# {run.name} kept no {CONFIG}"
    place = relative(run.folder.resolve())
    path = shlex.quote(str(place)) if place.is_absolute() else f'"$PWD"/{shlex.quote(str(place))}'
    words = ("--config-name", CONFIG.removesuffix(".yaml"), override("hydra.run.dir", f"runs/again/{run.name}"))
    return quoted("kd-train", words).replace("kd-train", f"kd-train --config-path {path}", 1)


def _predictions(every: list[Group], missing: dict[str, str]) -> dict[str, Predictions]:
    kept: dict[str, Predictions] = {}
    absent = []
    for run in [run for group in every if group.role != "teacher" for run in group.runs]:
        try:
            found = evidence(run.folder, run.data["classes"])
        except InputError as error:
            missing[run.name] = f"{run.name}: {error}"
            continue
        if found is None:
            absent.append(run.name)
        elif any(not np.array_equal(found.labels, other.labels) for other in list(kept.values())[:1]):
            missing[run.name] = f"{run.name}: its predictions have other labels than the other runs'"
        else:
            kept[run.name] = found
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        missing["predictions"] = f"No predictions were kept by {', '.join(absent[:3])}{more}."
    return kept


def _images(every: list[Group], kept: Mapping[str, Predictions], missing: dict[str, str]) -> StudyImages | None:
    if not kept:
        return None
    run = next(run for group in every for run in group.runs if run.name in kept)
    try:
        images = StudyImages(run.summary)
        images.check(kept[run.name].labels)
    except (InputError, OSError) as error:
        missing["images"] = f"The test images are not shown: {error}"
        return None
    return images
