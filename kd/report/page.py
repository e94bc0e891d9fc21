"""The page: the sections of a study, rendered with a template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from kd.report import charts, heatmaps, tables
from kd.report.charts import Chart
from kd.report.collect import latencies
from kd.report.groups import Group
from kd.report.predictions import ChangedImage, Predictions, changed, flips, per_class, pooled
from kd.report.statistics import Spread, sampling_error, spread
from kd.report.study import Study, commands
from kd.report.svg import VARIABLES
from kd.report.text_table import Table, points
from kd.report.verdicts import Gain, Teacher

TITLE = "Did distillation help?"
MOST = 8  # methods in one chart
KINDS = ("correct more often with distillation", "correct more often from scratch")


@dataclass(frozen=True)
class Gallery:
    """Images of one kind for one method, each with its data URI and the lines beside it."""

    title: str
    images: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    name: str
    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    charts: tuple[Chart, ...] = ()
    small: bool = False
    legend: tuple[tuple[str, str], ...] = ()
    galleries: tuple[Gallery, ...] = ()
    folded: bool = False


@dataclass
class PageBuilder:
    """Builds the sections of one study."""

    study: Study
    hues: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hues = charts.colours(self.study.judged)
        self.drawn = self.study.judged[: MOST + 1]
        self.far = charts.far_below(self.study.gains)

    def sections(self) -> list[Section]:
        """All sections that have content."""
        sections = [self.results(), self.gain(), self.curves(), *self.sweeps(), self.cost(), self.agreement()]
        sections += [self.classes(), self.images(), self.correlations(), self.every_run()]
        return [section for section in sections if section is not None]

    def results(self) -> Section:
        return Section("results", "Results", table=tables.main(self.study))

    def gain(self) -> Section | None:
        drawing = charts.forest(self.study.gains, self.hues)
        if drawing is None:
            return None
        return Section("gain", "Gain over scratch", table=tables.verdict(self.study), charts=(drawing,))

    def curves(self) -> Section | None:
        lines = (
            ("val/acc", "Validation accuracy, %", 100.0),
            ("val/nll", "Validation NLL, nats", 1.0),
            ("val/agreement", "Agreement with the teacher, %", 100.0),
            ("val/ece", "Calibration error (ECE), %", 100.0),
        )
        curves = [charts.curve(self.drawn, key, words, self.hues, self.far, scale) for key, words, scale in lines]
        drawings = tuple(drawing for drawing in curves if drawing)
        text = ("Mean over seeds; the band is one standard deviation.", *self._not_drawn())
        return Section("curves", "Curves", text, charts=drawings, legend=self.legend()) if drawings else None

    def sweeps(self) -> list[Section]:
        sections = []
        for sweep in self.study.sweeps:
            text = (tables.best_setting(self.study, sweep), *([self.study.warning] if self.study.warning else []))
            drawing = heatmaps.heat(sweep) if sweep.grid else heatmaps.search(sweep)
            sections.append(Section("sweep", f"{sweep.base}: T and alpha", text, charts=(drawing,)))
        return sections

    def cost(self) -> Section | None:
        study = self.study
        holders: list[tuple[str, Group | Teacher, Spread | None]]
        holders = [(t.name, t, t.test) for t in study.teachers]
        holders += [(group.label, group, spread(list(group.accuracies().values()))) for group in self.drawn]
        _, measured = latencies(run for _, holder, _ in holders for run in holder.runs)
        near = [holder for holder in holders if holder[0] not in self.far]
        plots = []
        for key, words in (("parameters", "parameters"), ("macs", "MACs"), ("latency", "latency in ms")):
            points = [(label, _cost(holder, key, measured), scores) for label, holder, scores in near]
            plots.append(charts.costs(points, words, self.hues))
        drawings = tuple(drawing for drawing in plots if drawing)
        text, legend = (self._not_drawn(), self.legend()) if drawings else ((), ())
        return Section("cost", "Accuracy against cost", text, tables.cost(study), drawings, legend=legend)

    def agreement(self) -> Section:
        drawings = []
        saved = self.study.teacher_predictions()
        if saved is not None and saved.teacher is not None:
            bins = pooled([(saved.teacher, saved.labels)])
            drawings.append(charts.calibration("teacher", bins, charts.TEACHER, 1))
        for group in self.drawn:
            if runs := self.study.predictions_of(group):
                bins = pooled([(run.student, run.labels) for run in runs.values()])
                drawings.append(charts.calibration(group.label, bins, self.hues[group.label], len(runs)))
        text = (
            "Bars below the diagonal: overconfident. Grey: number of predictions, relative to the fullest bin; bins "
            f"with fewer than {charts.FEW} predictions have no bar."
        )
        return Section(
            "agreement",
            "Agreement and calibration",
            (text,) if drawings else (),
            tables.agreement(self.study),
            tuple(drawings),
            small=True,
        )

    def classes(self) -> Section | None:
        drawings = []
        count = self.study.first.data["classes"]
        for gain, ours, base in self.pairs():
            each = np.asarray([_accuracy(a, count) - _accuracy(b, count) for a, b in zip(ours, base)])
            std = each.std(0, ddof=1) if len(each) > 1 else None
            drawings.append(charts.by_class(gain.group.label, self.study.names, each.mean(0), std))
        if not drawings:
            return None
        size = int(np.median(np.bincount(next(iter(self.study.predictions.values())).labels, minlength=count)))
        text = (
            "Test accuracy per class minus scratch's, mean over paired seeds; lines are one standard deviation. "
            f"A class has about {size} test images; one image is {100 / max(size, 1):.1f} points."
        )
        return Section("classes", "Gain by class", (text,), charts=tuple(drawings))

    def images(self) -> Section | None:
        study, title = self.study, "Images with changed predictions"
        galleries: list[Gallery] = []
        text = []
        if study.images is None:
            why = tuple(study.missing[key] for key in ("images", "predictions") if key in study.missing)
            return Section("images", title, why[:1]) if why else None
        for gain, ours, base in self.pairs():
            name = gain.group.label
            better, worse = np.mean([flips(a, b) for a, b in zip(ours, base)], axis=0)
            text.append(
                f"{name}: compared with scratch of the same seed, {better:.1f} of {len(ours[0].labels):,} images "
                f"change from wrong to correct and {worse:.1f} from correct to wrong, mean over seeds."
            )
            for kind, images in zip(KINDS, changed(ours, base)):
                captioned = [(study.images.data_uri(image.index), self._lines(image, len(ours))) for image in images]
                galleries += [Gallery(f"{name}: {kind}", captioned)] if captioned else []
        text.append("In brackets: in how many of the seeds the prediction is correct.")
        return Section("images", title, tuple(text), galleries=tuple(galleries)) if galleries else None

    def correlations(self) -> Section | None:
        saved = self.study.teacher_predictions()
        if saved is None or saved.teacher is None:
            return None
        differences = {}
        for group in self.drawn:
            students = [run.student.correlation for run in self.study.predictions_of(group).values()]
            if students:
                each = [np.abs(student - saved.teacher.correlation) for student in students]
                differences[group.label] = np.mean(each, axis=0)
        near = {label: matrix for label, matrix in differences.items() if label not in self.far} or differences
        scale = max(float(np.quantile(matrix, 0.99)) for matrix in near.values())
        drawings = tuple(
            charts.correlations(label, matrix, scale, self.study.names) for label, matrix in differences.items()
        )
        text = (
            "For each pair of classes, the absolute difference between the student's and the teacher's correlation of "
            "logits over the test set, mean over seeds (after Tian et al. 2020, arXiv:1910.10699). A stronger colour "
            f"is a larger difference; full colour is {scale:.2f} or more.",
        )
        return Section("correlations", "Difference of logit correlations", text, charts=drawings, small=True)

    def every_run(self) -> Section:
        return Section("runs", "Every run", table=tables.runs(self.study), folded=True)

    def pairs(self) -> list[tuple[Gain, list[Predictions], list[Predictions]]]:
        """The methods with predictions of paired seeds; controls only if there is nothing else."""
        every = list(self.study.pairs())
        return ([pair for pair in every if not pair[0].group.control] or every)[:MOST]

    def legend(self) -> tuple[tuple[str, str], ...]:
        """Labels with the names of their colours on the page."""
        teachers = [(f"teacher {t.name}", "teacher") for t in self.study.teachers]
        labels = [group.label for group in self.drawn if group.label not in self.far]
        return (*teachers, *((label, VARIABLES[self.hues[label]]) for label in labels))

    def _not_drawn(self) -> tuple[str, ...]:
        more = len(self.study.judged) - len(self.drawn)
        text = [f"{more} more methods are only in the tables."] if more > 0 else []
        return (*text, *([f"Not drawn, as too far below: {', '.join(sorted(self.far))}."] if self.far else []))

    def _lines(self, image: ChangedImage, seeds: int) -> list[str]:
        names = self.study.names
        lines = [f"label: {names[image.label]}"]
        lines.append(f"distilled: {names[image.student_class]} ({image.student_correct}/{seeds})")
        lines.append(f"scratch: {names[image.scratch_class]} ({image.scratch_correct}/{seeds})")
        return lines + ([f"teacher: {names[image.teacher_class]}"] if image.teacher_class is not None else [])


def render(study: Study) -> str:
    """The whole page as one HTML document without external resources."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"points": points}
    environment.filters |= {"upper_first": lambda text: text[:1].upper() + text[1:]}
    environment.filters |= {"nobreak": lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")}
    return environment.get_template("page.html.j2").render(**header(study), sections=PageBuilder(study).sections())


def header(study: Study) -> dict[str, Any]:
    """The template's values except the sections."""
    test = study.first.data.get("test")
    scores = [score for group in study.students for score in group.accuracies().values()]
    error = sampling_error(float(np.mean(scores)), test) if test and scores else None
    return {
        "title": TITLE if study.gains else "Runs",
        "facts": facts(study),
        "gains": study.gains,
        "warning": study.warning,
        "commands": commands(study),
        "excluded": tables.excluded(study) if study.excluded else None,
        "missing": [text for key, text in study.missing.items() if key != "images"],
        "error": None if error is None else f"{100 * error:.1f}",
        "test": test,
        "versions": versions(study),
    }


def facts(study: Study) -> list[tuple[str, str]]:
    """Student, teacher, data, seeds and epochs, by name."""
    data, students = study.first.data, study.students
    source = str((data.get("config") or {}).get("_target_", "")).rpartition(".")[2]
    counts = [f"{data[part]:,} {part}" for part in ("train", "val", "test") if data.get(part)]
    seeds = sorted({seed for group in students for seed in group.seeds})
    names = list(dict.fromkeys(str(group.first.student["name"]) for group in students))
    epochs = sorted({run.training.get("epochs") or 0 for group in students for run in group.runs})
    rows = [("student", ", ".join(names)), ("teacher", ", ".join(t.name for t in study.teachers) or "none")]
    rows += [("data", f"{source}, {data['classes']} classes"), ("images", ", ".join(counts))]
    rows += [("seeds", ", ".join(map(str, seeds)) if len(seeds) < 9 else f"{len(seeds)}")]
    return [(key, text) for key, text in [*rows, ("epochs", ", ".join(map(str, epochs)))] if text]


def versions(study: Study) -> list[str]:
    """The package versions of the runs; several where they differ."""
    named: dict[str, dict[str, None]] = {}
    for group in study.groups:
        for run in group.runs:
            for package, version in (run.summary.get("versions") or {}).items():
                named.setdefault(package, {})[str(version)] = None
    return [f"{package} {' and '.join(each)}{' (differ)' if len(each) > 1 else ''}" for package, each in named.items()]


def _accuracy(run: Predictions, classes: int) -> NDArray[np.floating]:
    return per_class(run.student.predicted, run.labels, classes)


def _cost(holder: Group | Teacher, key: str, measured: Mapping[str, float]) -> float | None:
    if key == "latency":
        times = [measured[run.name] for run in holder.runs if run.name in measured]
        return float(np.mean(times)) if times else None
    return getattr(holder, key) if isinstance(holder, Teacher) else holder.first.student.get(key)
