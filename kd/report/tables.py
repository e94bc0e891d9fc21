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
        rows.append((_name(group, study), str(len(group.runs)), *(percent(group.spread(*at)) for at in SCORES), *won))
    chosen = "test" if study.flag else "val"
    columns = ("", "seeds", f"{chosen} best", f"{chosen} last", "test", "gain [95 %]", "gap closed")
    notes = [
        "Accuracy in percent, mean \N{PLUS-MINUS SIGN} standard deviation over seeds, at the best and the last epoch; "
        "test is measured once, with the student of the best epoch. Gain over scratch in points, paired by seed, with "
        "its 95 % t interval."
    ]
    if others := len(study.students) - len(study.judged):
        notes.append(f"Of each sweep the chosen setting; the {others} others are in its map and in results.csv.")
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
    notes = "p: two-sided paired t test over seeds. Holm: adjusted for all methods of this table but controls."
    return Table("gain over scratch", columns, tuple(rows), (notes, *_flag(study)))


def likeness(study: Study) -> Table:
    """Calibration, and likeness to the teacher, on test."""
    rows: list[tuple[str, ...]] = []
    for t in study.teachers:
        seen = study.taught() if len(study.teachers) == 1 else None
        own = Spread(seen.teacher.brier, None, 1) if seen and seen.teacher else None
        ece = Spread(pooled([(seen.teacher, seen.labels)]).ece, None, 1) if seen and seen.teacher else None
        rows.append((f"teacher {t.name}", NONE, NONE, number(t.nll), number(t.ece or ece), number(own)))
    for group in study.judged:
        agreement, kl, nll, ece = (group.spread("test", key) for key in ("agreement", "kl", "nll", "ece"))
        brier = spread([seen.student.brier for seen in study.seen(group).values()])
        rows.append((_name(group, study), percent(agreement), *map(number, (kl, nll, ece, brier))))
    columns = ("", "agreement, %", "KL to teacher", "NLL", "ECE", "Brier")
    notes = (
        "On test. Agreement: share of equal answers; KL(teacher || student) at T = 1 and NLL in nats; ECE in 15 bins."
    )
    return Table("likeness and calibration", columns, tuple(rows), (notes, *_flag(study)))


def cost(study: Study) -> Table:
    """What each network costs at inference, and its training here."""
    every = [*(group.runs for group in study.judged), *(teacher.runs for teacher in study.teachers)]
    way, measured = latencies(run for runs in every for run in runs)

    def row(name: str, accuracy: Spread | None, parameters: int | None, macs: int | None, runs: Sequence[Run]) -> None:
        ms = spread([measured[run.name] for run in runs if run.name in measured])
        taken = [run.training.get("seconds") for run in runs]
        seconds = spread([seconds for seconds in taken if seconds])
        rows.append((name, percent(accuracy), count(parameters), count(macs), number(ms, 2), number(seconds, 1)))

    rows: list[tuple[str, ...]] = []
    for t in study.teachers:
        row(f"teacher {t.name}", t.test, t.parameters, t.macs, t.runs)
    for group in study.judged:
        about, accuracy = group.first.student, spread(list(group.accuracies().values()))
        row(_name(group, study), accuracy, about.get("parameters"), about.get("macs"), group.runs)
    columns = ("", "accuracy, %", "parameters", "MACs", "latency, ms", "training, s")
    told = f"Latency: median for one image, {way}." if way else "Latency: none measured; kd-export run=RUN measures it."
    return Table("cost", columns, tuple(rows), (f"MACs of one image. {told}", *_flag(study)))


def heat(study: Study, grid: Sweep) -> Table:
    """Validation accuracy over T and alpha; of a search a list, best first."""
    notes = ("Validation accuracy at the best epoch, in percent.", best_setting(study, grid), *_flag(study))
    if not grid.grid:
        known = [(group.spread("best", "val/acc"), at) for at, group in grid.cells.items()]
        order = sorted((-score.mean, *at, percent(score)) for score, at in known if score)
        listed = tuple((f"T = {T:g}, alpha = {alpha:g}", text) for _, T, alpha, text in order)
        return Table(f"{grid.base}: T and alpha", ("", "validation"), listed, notes)
    alphas = sorted({alpha for _, alpha in grid.cells})
    rows = []
    for T in sorted({T for T, _ in grid.cells}):
        cells = [grid.cells.get((T, alpha)) for alpha in alphas]
        rows.append((f"T = {T:g}", *(percent(g.spread("best", "val/acc")) if g else NONE for g in cells)))
    return Table(f"{grid.base}: T and alpha", ("", *(f"alpha = {a:g}" for a in alphas)), tuple(rows), notes)


def best_setting(study: Study, grid: Sweep) -> str:
    """The setting that validation chose, with its test accuracy."""
    best = grid.best
    val, test = percent(best.spread("best", "val/acc")), percent(best.spread("test", "acc"))
    few = " With one seed for a setting, neighbours may differ by luck." if len(best.runs) == 1 else ""
    chosen = "(here the test set) " if study.flag else ""
    return (
        f"Best setting by validation accuracy {chosen}out of {len(grid.cells)}: T = {best.recipe['T']:g}, "
        f"alpha = {best.recipe['alpha']:g}, with {val} % on validation and {test} % on test.{few}"
    )


def runs(study: Study) -> Table:
    """Each run that counts."""
    rows = []
    for group in study.groups:
        for run in group.runs:
            epoch = run.score("best", "epoch")
            best = NONE if epoch is None else f"{epoch:.0f}"
            rows.append((run.name, group.label, str(run.seed), best, *(percent(run.score(*at)) for at in SCORES)))
    columns = ("folder", "method", "seed", "best epoch", "val, best", "val, last", "test")
    return Table("every run", columns, tuple(rows), _flag(study))


def left_out(study: Study) -> Table:
    """The run folders that no table counts."""
    return Table("not counted", ("folder", "why"), tuple((run.name, run.why) for run in study.left))


def results(study: Study) -> str:
    """One line for each run folder, as CSV with full precision."""
    lines = [_line(run, group, study.kept.get(run.name)) for group in study.groups for run in group.runs]
    lines += [{"folder": run.name, "status": run.why} for run in study.left]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _safe(value) for key, value in line.items()} for line in lines)
    return text.getvalue()


def _flag(study: Study) -> tuple[str, ...]:
    return (study.flag,) if study.flag else ()


def _line(run: Run, group: Group, seen: Predictions | None) -> dict[str, object]:
    line: dict[str, object] = {"folder": run.name, "status": "finished", "role": group.role, "label": group.label}
    line |= {"seed": run.seed, "student": run.student["name"], "teacher": run.teacher.get("name")}
    line |= {"objective": run.objective.get("name"), "T": run.objective.get("T"), "alpha": run.objective.get("alpha")}
    line |= {"val": (run.data.get("config") or {}).get("val"), "parameters": run.student.get("parameters")}
    line |= {"macs": run.student.get("macs"), "latency_ms": next(iter(run.latencies.values()), None)}
    line |= {key: run.training.get(key) for key in ("epochs", "steps", "seconds")}
    for part in ("best", "last", "test"):
        scores = run.summary["metrics"].get(part) or {}
        line |= {f"{part}_{key.replace('/', '_')}": value for key, value in scores.items()}
    return line | {"test_brier": seen.student.brier if seen else None}


def _safe(value: object) -> object:
    """A spreadsheet runs what begins with one of these; a run's name is data."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _name(group: Group, study: Study) -> str:
    name = str(group.first.student["name"])
    several = len({g.first.student["name"] for g in study.students}) > 1
    return f"{group.label} ({name})" if several and name not in group.label.split() else group.label
