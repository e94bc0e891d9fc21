"""The page: sections out of a study, and the template that sets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from kd.report import charts, heatmaps, tables
from kd.report.charts import Picture
from kd.report.collect import latencies
from kd.report.groups import Group
from kd.report.predictions import Changed, Predictions, changed, flips, per_class, pooled
from kd.report.statistics import Spread, sampling_error, spread
from kd.report.study import Study, commands
from kd.report.svg import VARIABLES
from kd.report.text_table import Table, points
from kd.report.verdicts import Gain, Teacher

MOST = 8  # methods in one chart
KINDS = ("more often right when distilled", "more often right from scratch")


@dataclass(frozen=True)
class Gallery:
    """Images of one kind for one method, each with its data URI and what was said."""

    title: str
    images: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    name: str
    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    pictures: tuple[Picture, ...] = ()
    small: bool = False
    legend: tuple[tuple[str, str], ...] = ()
    galleries: tuple[Gallery, ...] = ()
    folded: bool = False


@dataclass
class PageBuilder:
    """Collects the sections of one study."""

    study: Study
    hues: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hues = charts.colours(self.study.judged)
        self.shown = self.study.judged[: MOST + 1]
        self.far = charts.far_below(self.study.gains)

    def sections(self) -> list[Section]:
        """Those that have something to show."""
        made = [self.results(), self.gain(), self.curves(), *self.heat(), self.cost(), self.likeness()]
        made += [self.classes(), self.images(), self.correlations(), self.every_run()]
        return [section for section in made if section is not None]

    def results(self) -> Section:
        study = self.study
        return Section("results", "Results", table=tables.main(study))

    def gain(self) -> Section | None:
        picture = charts.forest(self.study.gains, self.hues)
        if picture is None:
            return None
        return Section("gain", "Gain over scratch", table=tables.verdict(self.study), pictures=(picture,))

    def curves(self) -> Section | None:
        lines = (
            ("val/acc", "Validation accuracy, %", 100.0),
            ("val/nll", "Validation NLL, nats", 1.0),
            ("val/agreement", "Agreement with the teacher, %", 100.0),
            ("val/ece", "Calibration error (ECE), %", 100.0),
        )
        far = self.far
        drawn = [charts.curve(self.shown, key, words, self.hues, far, scale) for key, words, scale in lines]
        found = tuple(picture for picture in drawn if picture)
        text = ("Mean over seeds; the band is one standard deviation.", *self._cut())
        return Section("curves", "Curves", text, pictures=found, legend=self.legend(True)) if found else None

    def heat(self) -> list[Section]:
        made = []
        for grid in self.study.sweeps:
            text = (tables.best_setting(self.study, grid), *([self.study.flag] if self.study.flag else []))
            picture = heatmaps.heat(grid) if grid.grid else heatmaps.search(grid)
            made.append(Section("sweep", f"{grid.base}: T and alpha", text, pictures=(picture,)))
        return made

    def cost(self) -> Section | None:
        study = self.study
        holders: list[tuple[str, Group | Teacher, Spread | None]]
        holders = [(t.name, t, t.test) for t in study.teachers]
        holders += [(group.label, group, spread(list(group.accuracies().values()))) for group in self.shown]
        _, measured = latencies(run for _, holder, _ in holders for run in holder.runs)
        drawn = []
        for key, words in (("parameters", "parameters"), ("macs", "MACs"), ("latency", "latency in ms")):
            near = [part for part in holders if part[0] not in self.far]
            known = [(label, _cost(holder, key, measured), scores) for label, holder, scores in near]
            drawn.append(charts.costs(known, words, self.hues))
        found = tuple(picture for picture in drawn if picture)
        table = tables.cost(study)
        return Section(
            "cost", "Accuracy against cost", self._cut(), table, found, legend=self.legend(True) if found else ()
        )

    def likeness(self) -> Section:
        study, drawn = self.study, []
        teacher = self.study.taught()
        if teacher is not None and teacher.teacher is not None:
            own = pooled([(teacher.teacher, teacher.labels)])
            drawn.append(charts.calibration("teacher", own, charts.TEACHER, 1))
        for group in self.shown:
            if seen := study.seen(group):
                found = pooled([(run.student, run.labels) for run in seen.values()])
                drawn.append(charts.calibration(group.label, found, self.hues[group.label], len(seen)))
        text = (
            "Bars below the diagonal: more confident than right. Grey: how many answers, beside the fullest bin's; "
            f"a bin with fewer than {charts.FEW} has no bar."
        )
        table = tables.likeness(study)
        return Section(
            "likeness", "Likeness and calibration", (text,) if drawn else (), table, tuple(drawn), small=True
        )

    def classes(self) -> Section | None:
        drawn = []
        count = self.study.first.data["classes"]
        for gain, ours, base in self.pairs():
            each = np.asarray([_accuracy(a, count) - _accuracy(b, count) for a, b in zip(ours, base)])
            std = each.std(0, ddof=1) if len(each) > 1 else None
            drawn.append(charts.by_class(gain.group.label, self.study.names, each.mean(0), std))
        if not drawn:
            return None
        size = int(np.median(np.bincount(next(iter(self.study.kept.values())).labels, minlength=count)))
        text = (
            "Test accuracy of each class minus scratch's, mean over paired seeds; lines are one standard deviation. "
            f"A class has about {size} test images, so one image is {100 / max(size, 1):.1f} points."
        )
        return Section("classes", "Gain by class", (text,), pictures=tuple(drawn))

    def images(self) -> Section | None:
        study, title = self.study, "Where distilling changed the answer"
        galleries: list[Gallery] = []
        text = []
        if study.images is None:
            why = tuple(study.missing[key] for key in ("images", "predictions") if key in study.missing)
            return Section("images", title, why[:1]) if why else None
        for gain, ours, base in self.pairs():
            name = gain.group.label
            mended, spoilt = np.mean([flips(a, b) for a, b in zip(ours, base)], axis=0)
            text.append(
                f"{name}: against scratch of the same seed, {mended:.1f} of {len(ours[0].labels):,} images turn from "
                f"wrong to right and {spoilt:.1f} from right to wrong, mean over seeds."
            )
            for kind, found in zip(KINDS, changed(ours, base)):
                shown = [(study.images.shown(it.index), self._said(it, len(ours))) for it in found]
                galleries += [Gallery(f"{name}: {kind}", shown)] if shown else []
        text.append("Beside an answer: in how many of the seeds it is right.")
        return Section("images", title, tuple(text), galleries=tuple(galleries)) if galleries else None

    def correlations(self) -> Section | None:
        teacher = self.study.taught()
        if teacher is None or teacher.teacher is None:
            return None
        found = {}
        for group in self.shown:
            seen = [run.student.correlation for run in self.study.seen(group).values()]
            if seen:
                found[group.label] = np.mean([np.abs(one - teacher.teacher.correlation) for one in seen], axis=0)
        near = {label: own for label, own in found.items() if label not in self.far} or found
        scale = max(float(np.quantile(difference, 0.99)) for difference in near.values())
        drawn = tuple(charts.correlations(label, own, scale, self.study.names) for label, own in found.items())
        text = (
            "Between each two classes, how far the correlation of the student's logits over the test set lies from the "
            "teacher's, mean over seeds; stronger is further (after Tian et al. 2020, arXiv:1910.10699). "
            f"Full colour is {scale:.2f} and more.",
        )
        return Section("correlations", "Difference of logit correlations", text, pictures=drawn, small=True)

    def every_run(self) -> Section:
        return Section("runs", "Every run", table=tables.runs(self.study), folded=True)

    def pairs(self) -> list[tuple[Gain, list[Predictions], list[Predictions]]]:
        """The methods, without controls where there is anything else, with predictions of paired seeds."""
        every = list(self.study.pairs())
        return ([pair for pair in every if not pair[0].group.control] or every)[:MOST]

    def legend(self, teacher: bool) -> tuple[tuple[str, str], ...]:
        """Label to the page's colour."""
        known = [(f"teacher {t.name}", "teacher") for t in self.study.teachers] if teacher else []
        drawn = [group.label for group in self.shown if group.label not in self.far]
        return (*known, *((label, VARIABLES[self.hues[label]]) for label in drawn))

    def _cut(self) -> tuple[str, ...]:
        rest = len(self.study.judged) - len(self.shown)
        words = [f"{rest} more methods are in the tables only."] if rest > 0 else []
        return (*words, *([f"Too far below to be drawn here: {', '.join(sorted(self.far))}."] if self.far else []))

    def _said(self, it: Changed, seeds: int) -> list[str]:
        names = self.study.names
        told = [f"is {names[it.label]}"]
        told.append(f"distilled: {names[it.said_ours]} ({it.ours}/{seeds})")
        told.append(f"scratch: {names[it.said_base]} ({it.base}/{seeds})")
        return told + ([f"teacher: {names[it.said_teacher]}"] if it.said_teacher is not None else [])


def render(study: Study) -> str:
    """The whole page as one HTML document that asks for nothing from outside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"points": points}
    environment.filters |= {"upper_first": lambda text: text[:1].upper() + text[1:]}
    return environment.get_template("page.html.j2").render(**about(study), sections=PageBuilder(study).sections())


def about(study: Study) -> dict[str, Any]:
    """What stands above and below the sections."""
    test = study.first.data.get("test")
    scores = [score for group in study.students for score in group.accuracies().values()]
    error = sampling_error(float(np.mean(scores)), test) if test and scores else None
    return {
        "title": "Did distilling help?" if study.gains else "Runs",
        "facts": facts(study),
        "gains": study.gains,
        "flag": study.flag,
        "commands": commands(study),
        "left": tables.left_out(study) if study.left else None,
        "missing": [text for key, text in study.missing.items() if key != "images"],
        "error": None if error is None else f"{100 * error:.1f}",
        "test": test,
        "versions": versions(study),
    }


def facts(study: Study) -> list[tuple[str, str]]:
    """Who taught whom on what."""
    data, students = study.first.data, study.students
    source = str((data.get("config") or {}).get("_target_", "")).rpartition(".")[2]
    counts = [f"{data[part]:,} {part}" for part in ("train", "val", "test") if data.get(part)]
    seeds = sorted({seed for group in students for seed in group.seeds})
    names = list(dict.fromkeys(str(group.first.student["name"]) for group in students))
    found = [("student", ", ".join(names)), ("teacher", ", ".join(t.name for t in study.teachers) or "none")]
    found += [("data", f"{source}, {data['classes']} classes"), ("images", ", ".join(counts))]
    found += [("seeds", ", ".join(map(str, seeds)) if len(seeds) < 9 else f"{len(seeds)}")]
    epochs = sorted({run.training.get("epochs") or 0 for group in students for run in group.runs})
    return [(key, text) for key, text in [*found, ("epochs", ", ".join(map(str, epochs)))] if text]


def versions(study: Study) -> list[str]:
    """The versions that the runs name; several where they differ."""
    named: dict[str, dict[str, None]] = {}
    for group in study.groups:
        for run in group.runs:
            for package, version in (run.summary.get("versions") or {}).items():
                named.setdefault(package, {})[str(version)] = None
    return [
        f"{package} {' and '.join(found)}{' (differ)' if len(found) > 1 else ''}" for package, found in named.items()
    ]


def _accuracy(seen: Predictions, classes: int) -> NDArray[np.floating]:
    return per_class(seen.student.answers, seen.labels, classes)


def _cost(holder: Group | Teacher, key: str, measured: Mapping[str, float]) -> float | None:
    if key == "latency":
        known = [measured[run.name] for run in holder.runs if run.name in measured]
        return float(np.mean(known)) if known else None
    return getattr(holder, key) if isinstance(holder, Teacher) else holder.first.student.get(key)
