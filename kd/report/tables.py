"""The report's tables, and its results as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from kd.report.collect import Run, latencies
from kd.report.groups import Group
from kd.report.predictions import Predictions, pooled
from kd.report.statistics import Spread, spread
from kd.report.study import Study
from kd.report.text_table import NONE, Table, count, interval, number, p_text, percent, share
from kd.report.verdicts import Sweep

SCORES = (("best", "val/acc"), ("last", "val/acc"), ("test", "acc"))


def main(study: Study) -> Table:
    """Accuracy of teacher, scratch and every method, with the gain over scratch."""
    gains = {gain.group.label: gain for gain in study.gains}
    rows = [(f"teacher {t.name}", NONE, *map(percent, (t.val, t.last, t.test)), NONE, NONE) for t in study.teachers]
    for group in study.judged:
        gain = gains.get(group.label) if group.role == "student" else None
        won = (interval(gain.paired), share(gain.closed)) if gain else (NONE, NONE)
        scores = (percent(group.spread(*score)) for score in SCORES)
        rows.append((_name(group, study), str(len(group.runs)), *scores, *won))
    chosen = "test" if study.warning else "val"
    columns = ("", "seeds", f"{chosen} best", f"{chosen} last", "test", "gain [95 %]", "gap closed")
    notes = [
        "Accuracy in percent, mean \N{PLUS-MINUS SIGN} standard deviation over seeds, at the best and the last epoch; "
        "the test set is evaluated once, with the student of the best epoch. Gain over scratch in points, paired by "
        "seed, with its 95 % t interval."
    ]
    if others := len(study.students) - len(study.judged):
        notes.append(
            f"Of each sweep only the selected setting; the other {others} are in its heat map and in results.csv."
        )
    return Table("accuracy", columns, tuple(rows), (*notes, *_flag(study)))


def verdict(study: Study) -> Table:
    """The paired test of each method against scratch."""
    rows = []
    for gain in study.gains:
        result = gain.paired
        ahead = f"{result.wins} of {result.n}" if result else NONE
        ps = (result.p if result else None, gain.p)
        plain, adjusted = (p_text(p).removeprefix("p ").removeprefix("= ") or NONE for p in ps)
        rows.append((gain.group.label, interval(result), ahead, plain, adjusted, share(gain.closed), gain.tag))
    columns = ("", "gain in points [95 %]", "ahead in seeds", "p", "p, Holm", "gap closed", "verdict")
    notes = "p: two-sided paired t test over seeds. Holm: adjusted over all methods of this table except controls."
    return Table("gain over scratch", columns, tuple(rows), (notes, *_flag(study)))


def agreement(study: Study) -> Table:
    """Calibration, and agreement with the teacher, on the test set."""
    rows: list[tuple[str, ...]] = []
    for t in study.teachers:
        saved = study.teacher_predictions() if len(study.teachers) == 1 else None
        brier = Spread(saved.teacher.brier, None, 1) if saved and saved.teacher else None
        ece = Spread(pooled([(saved.teacher, saved.labels)]).ece, None, 1) if saved and saved.teacher else None
        rows.append((f"teacher {t.name}", NONE, NONE, number(t.nll), number(t.ece or ece), number(brier)))
    for group in study.judged:
        equal, kl, nll, ece = (group.spread("test", key) for key in ("agreement", "kl", "nll", "ece"))
        brier = spread([run.student.brier for run in study.predictions_of(group).values()])
        rows.append((_name(group, study), percent(equal), *map(number, (kl, nll, ece, brier))))
    columns = ("", "agreement, %", "KL to teacher", "NLL", "ECE", "Brier")
    notes = (
        "On the test set. Agreement: share of equal predictions; KL(teacher || student) at T = 1 and NLL in nats; "
        "ECE with 15 bins."
    )
    return Table("agreement and calibration", columns, tuple(rows), (notes, *_flag(study)))


def cost(study: Study) -> Table:
    """The cost of each network at inference, and the time of its training."""
    every = [*(group.runs for group in study.judged), *(teacher.runs for teacher in study.teachers)]
    setting, measured = latencies(run for runs in every for run in runs)

    def row(name: str, accuracy: Spread | None, parameters: int | None, macs: int | None, runs: Sequence[Run]) -> None:
        ms = spread([measured[run.name] for run in runs if run.name in measured])
        seconds = spread([seconds for run in runs if (seconds := run.training.get("seconds"))])
        rows.append((name, percent(accuracy), count(parameters), count(macs), number(ms, 2), number(seconds, 1)))

    rows: list[tuple[str, ...]] = []
    for t in study.teachers:
        row(f"teacher {t.name}", t.test, t.parameters, t.macs, t.runs)
    for group in study.judged:
        student, accuracy = group.first.student, spread(list(group.accuracies().values()))
        row(_name(group, study), accuracy, student.get("parameters"), student.get("macs"), group.runs)
    columns = ("", "accuracy, %", "parameters", "MACs", "latency, ms", "training, s")
    latency = f"median for one image, {setting}." if setting else "not measured; kd-export run=RUN measures it."
    return Table("cost", columns, tuple(rows), (f"MACs of one image. Latency: {latency}", *_flag(study)))


def heat(study: Study, sweep: Sweep) -> Table:
    """Validation accuracy over T and alpha; for a search, a list with the best first."""
    notes = ("Validation accuracy at the best epoch, in percent.", best_setting(study, sweep), *_flag(study))
    if not sweep.grid:
        scores = [(group.spread("best", "val/acc"), setting) for setting, group in sweep.cells.items()]
        order = sorted((-score.mean, *setting, percent(score)) for score, setting in scores if score)
        listed = tuple((f"T = {T:g}, alpha = {alpha:g}", text) for _, T, alpha, text in order)
        return Table(f"{sweep.base}: T and alpha", ("", "validation"), listed, notes)
    alphas = sorted({alpha for _, alpha in sweep.cells})
    rows = []
    for T in sorted({T for T, _ in sweep.cells}):
        cells = [sweep.cells.get((T, alpha)) for alpha in alphas]
        rows.append((f"T = {T:g}", *(percent(g.spread("best", "val/acc")) if g else NONE for g in cells)))
    return Table(f"{sweep.base}: T and alpha", ("", *(f"alpha = {a:g}" for a in alphas)), tuple(rows), notes)


def best_setting(study: Study, sweep: Sweep) -> str:
    """The setting with the highest validation accuracy, with its test accuracy."""
    best = sweep.best
    val, test = percent(best.spread("best", "val/acc")), percent(best.spread("test", "acc"))
    few = " With one seed per setting, differences between neighbours may be noise." if len(best.runs) == 1 else ""
    chosen = "(here the test set) " if study.warning else ""
    return (
        f"Best setting by validation accuracy {chosen}out of {len(sweep.cells)}: T = {best.recipe['T']:g}, "
        f"alpha = {best.recipe['alpha']:g}, with {val} % on validation and {test} % on test.{few}"
    )


def runs(study: Study) -> Table:
    """Every run that is part of a group."""
    rows = []
    for group in study.groups:
        for run in group.runs:
            epoch = run.score("best", "epoch")
            best = NONE if epoch is None else f"{epoch:.0f}"
            rows.append((run.name, group.label, str(run.seed), best, *(percent(run.score(*score)) for score in SCORES)))
    columns = ("folder", "method", "seed", "best epoch", "val, best", "val, last", "test")
    return Table("every run", columns, tuple(rows), _flag(study))


def excluded(study: Study) -> Table:
    """The run folders that are not part of any table."""
    return Table("not counted", ("folder", "why"), tuple((run.name, run.why) for run in study.excluded))


def results(study: Study) -> str:
    """One row per run folder, as CSV with full precision."""
    lines = [_line(run, group, study.predictions.get(run.name)) for group in study.groups for run in group.runs]
    lines += [{"folder": run.name, "status": run.why} for run in study.excluded]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _safe(value) for key, value in line.items()} for line in lines)
    return text.getvalue()


def _flag(study: Study) -> tuple[str, ...]:
    return (study.warning,) if study.warning else ()


def _line(run: Run, group: Group, predictions: Predictions | None) -> dict[str, object]:
    line: dict[str, object] = {"folder": run.name, "status": "finished", "role": group.role, "label": group.label}
    line |= {"seed": run.seed, "student": run.student["name"], "teacher": run.teacher.get("name")}
    line |= {"objective": run.objective.get("name"), "T": run.objective.get("T"), "alpha": run.objective.get("alpha")}
    line |= {"val": (run.data.get("config") or {}).get("val"), "parameters": run.student.get("parameters")}
    line |= {"macs": run.student.get("macs"), "latency_ms": next(iter(run.latencies.values()), None)}
    line |= {key: run.training.get(key) for key in ("epochs", "steps", "seconds")}
    for part in ("best", "last", "test"):
        scores = run.summary["metrics"].get(part) or {}
        line |= {f"{part}_{key.replace('/', '_')}": value for key, value in scores.items()}
    return line | {"test_brier": predictions.student.brier if predictions else None}


def _safe(value: object) -> object:
    """Quotes a cell that a spreadsheet would evaluate as a formula, as names come from run folders."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _name(group: Group, study: Study) -> str:
    name = str(group.first.student["name"])
    several = len({g.first.student["name"] for g in study.students}) > 1
    return f"{group.label} ({name})" if several and name not in group.label.split() else group.label
