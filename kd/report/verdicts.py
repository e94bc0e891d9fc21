"""Each method against scratch: the statistics, and a one-sentence verdict that claims no more than they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kd.report.collect import Run
from kd.report.groups import Group, baseline, is_teacher_of, warning_of
from kd.report.statistics import Paired, Spread, gap_closed, holm, paired, spread
from kd.report.text_table import p_text, points

SIGNIFICANT = 0.05
TAGS = {
    "better": "better than scratch",
    "worse": "worse than scratch",
    "hint": "a hint, no proof",
    "same": "no difference beyond seed spread",
    "open": "not decided",
}


@dataclass(frozen=True)
class Teacher:
    """A teacher's accuracy on validation and on its students' test set, as shares."""

    name: str
    parameters: int | None
    macs: int | None
    val: Spread | None
    last: Spread | None
    test: Spread | None
    ece: Spread | None
    nll: Spread | None
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Sweep:
    """Groups of one method that differ in T and alpha; ``best`` has the highest validation accuracy."""

    base: str
    cells: dict[tuple[float, float], Group]
    best: Group

    @property
    def grid(self) -> bool:
        """Whether at least half of the grid of T and alpha is filled; a search leaves most of it empty."""
        size = len({T for T, _ in self.cells}) * len({alpha for _, alpha in self.cells})
        return 2 * len(self.cells) >= size


@dataclass(frozen=True)
class Gain:
    """A method against its scratch baseline, paired by seed; ``p`` is Holm-adjusted over all except controls."""

    group: Group
    scratch: Group | None
    paired: Paired | None
    p: float | None
    closed: float | None
    teacher: str | None
    kind: str
    lead: str
    detail: str

    @property
    def sentence(self) -> str:
        """The verdict with its numbers, as one sentence."""
        return f"{self.lead}: {self.detail}"

    @property
    def tag(self) -> str:
        """The verdict in a few words."""
        one = self.kind == "open" and self.paired is not None and self.paired.n == 1
        harm = self.kind == "hint" and self.negative
        word = "one seed proves nothing" if one else "a hint of harm, no proof" if harm else TAGS[self.kind]
        return f"control: {word}" if self.group.control else word

    @property
    def negative(self) -> bool:
        """Whether scratch is better on average."""
        return self.paired is not None and self.paired.mean < 0


def teachers(every: Sequence[Group]) -> list[Teacher]:
    """The teachers of all students; without students, the teachers' own runs."""
    methods = [group for group in every if group.role != "teacher"]
    students = [run for group in sorted(methods, key=lambda group: group.control) for run in group.runs]
    runs = [run for group in every if group.role == "teacher" for run in group.runs]
    named: dict[str, dict[str, list[Run]]] = {}
    for run in students:
        if run.teacher:
            key = str(run.teacher.get("sha256") or run.teacher.get("checkpoint"))
            named.setdefault(str(run.teacher["name"]), {}).setdefault(key, []).append(run)
    teachers = [_teacher(name, list(students.values()), runs) for name, students in named.items()]
    return teachers or [_from_runs(group) for group in every if group.role == "teacher"]


def sweeps(every: Sequence[Group]) -> list[Sweep]:
    """The sweeps over T and alpha among the methods."""
    families: dict[str, list[Group]] = {}
    for group in every:
        if group.role == "student":
            fixed = {
                k: v for k, v in group.recipe.items() if k not in ("T", "alpha") and not k.startswith("objective.")
            }
            families.setdefault(f"{group.base} {sorted(fixed.items(), key=str)}", []).append(group)
    sweeps = []
    for family in families.values():
        numbered = [group for group in family if None not in (group.recipe.get("T"), group.recipe.get("alpha"))]
        cells = {(float(group.recipe["T"]), float(group.recipe["alpha"])): group for group in numbered}
        if len(cells) == len(family) > 1:
            sweeps.append(Sweep(family[0].base, dict(sorted(cells.items())), max(family, key=_validation)))
    return sweeps


def gains(every: Sequence[Group], teachers: Sequence[Teacher]) -> list[Gain]:
    """One verdict per method; for a sweep, of the setting selected on validation."""
    all_sweeps = sweeps(every)
    swept = {id(group) for sweep in all_sweeps for group in sweep.cells.values()}
    selected = {id(sweep.best) for sweep in all_sweeps}
    judged = [g for g in every if g.role == "student" and (id(g) in selected or id(g) not in swept)]
    results = [compared(group, every, teachers) for group in judged]
    unadjusted = [result.p if result else None for _, _, result, _ in results]
    claims = holm([None if group.control else p for group, p in zip(judged, unadjusted)])
    adjusted = [p if group.control else claim for group, p, claim in zip(judged, unadjusted, claims)]
    count = sum(p is not None for p in claims)
    verdicts = []
    for group, (base, differing, result, closed), p in zip(judged, results, adjusted):
        sweep = next((sweep for sweep in all_sweeps if sweep.best is group), None)
        gain = Gain(group, base, result, p, closed, group.first.teacher.get("name"), kind_of(result, p), "", "")
        lead, detail = _finding(gain, count)
        verdicts.append(replace(gain, lead=lead, detail=" ".join([detail, *_remarks(gain, differing, sweep)])))
    return verdicts


def compared(
    group: Group, every: Sequence[Group], teachers: Sequence[Teacher]
) -> tuple[Group | None, list[str], Paired | None, float | None]:
    """A method's scratch baseline, how its training differs, the paired gain, and the share of the gap closed."""
    base, differing = baseline(group, every)
    result = paired(group.accuracies(), base.accuracies()) if base else None
    if base is None or result is None:
        return base, differing, None, None
    teacher = next((t.test for t in teachers if t.name == group.first.teacher.get("name")), None)
    scores = base.accuracies()
    scratch = sum(scores[seed] for seed in result.seeds) / result.n
    return base, differing, result, gap_closed(scratch + result.mean, scratch, teacher.mean if teacher else None)


def kind_of(result: Paired | None, p: float | None) -> str:
    """``better``, ``worse``, ``hint`` (only the interval is significant), ``same``, or ``open`` (not decidable)."""
    if result is None or (result.low is None and (result.n == 1 or result.mean != 0)):
        return "open"
    if not result.excludes_zero:
        return "same"
    if p is not None and p >= SIGNIFICANT:
        return "hint"
    return "better" if result.mean > 0 else "worse"


def _finding(gain: Gain, count: int) -> tuple[str, str]:
    """The verdict and its numbers; ``count`` is the number of methods in Holm's correction."""
    name, result, base = gain.group.label, gain.paired, gain.scratch
    if gain.group.control:
        name, count = f"{name} (control)", 1
    if base is None:
        student = gain.group.first.student["name"]
        advice = "train it with kd-train teacher=none objective=ce and the same seeds."
        return f"{name}: nothing to compare with", f"no scratch {student} is among the runs; {advice}"
    if result is None:
        return f"{name}: nothing to pair", f"it has {_seeds(gain.group.seeds)}, scratch has {_seeds(base.seeds)}."
    size = f"{points(result.mean)} points of {_measure(gain.group)} accuracy"
    if result.n == 1:
        return f"{name}: one seed proves nothing", f"{size} at seed {result.seeds[0]}; run at least three seeds."
    if result.low is None or result.high is None:
        if result.mean == 0:
            return f"{name}: no difference", f"the same accuracy as scratch in each of {result.n} seeds."
        equal = f"{size} in each of {result.n} seeds, so that no spread can be estimated; run more seeds."
        return f"{name}: not decided", equal
    numbers = f"{size}, 95 % interval {points(result.low)} to {points(result.high)}, {result.n} paired seeds"
    p = p_text(gain.p) + (f" after Holm's correction for {count} methods" if count > 1 else "")
    if gain.kind == "same":
        width = f"{50 * (result.high - result.low):.1f}"
        return (
            f"{name}: {TAGS['same']}",
            f"{numbers}. Differences below about {width} points cannot be detected.",
        )
    if gain.kind == "hint":
        return f"{name}: {gain.tag.removeprefix('control: ')}", f"{numbers}, but {p}."
    return f"{name} {'is worse than' if gain.negative else 'beats'} scratch", f"{numbers}, {p}."


def _remarks(gain: Gain, differing: Sequence[str], sweep: Sweep | None) -> list[str]:
    """Further sentences that are needed to read the numbers."""
    parts = []
    unpaired = sorted(set(gain.group.seeds) ^ set(gain.scratch.seeds)) if gain.scratch else []
    if unpaired and gain.paired is not None:
        has = "has" if len(unpaired) == 1 else "have"
        parts.append(f"Only {_seeds(gain.paired.seeds)} could be paired; {_seeds(unpaired)} {has} no partner.")
    if gain.closed is not None and gain.kind in ("better", "hint") and not gain.negative:
        parts.append(f"That is {100 * gain.closed:.0f} % of the gap to the teacher {gain.teacher}.")
    selected_on_test = bool(warning_of([gain.group]))
    if sweep is not None and selected_on_test:
        parts.append(
            f"This setting, out of {len(sweep.cells)}, and the best epoch were chosen on the test set (data.val=test)."
        )
    elif sweep is not None:
        parts.append(f"This setting was chosen on validation out of {len(sweep.cells)}.")
    elif selected_on_test:
        parts.append("The best epoch was chosen on the test set (data.val=test).")
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        parts.append(f"Scratch was trained differently: {'; '.join(differing[:3])}{more}.")
    return parts


def _measure(group: Group) -> str:
    return "validation" if group.first.score("test", "acc") is None else "test"


def _seeds(seeds: Sequence[int]) -> str:
    *head, last = [str(seed) for seed in sorted(seeds)]
    return f"seeds {', '.join(head)} and {last}" if head else f"seed {last}"


def _validation(group: Group) -> float:
    scores = group.spread("best", "val/acc")
    return scores.mean if scores else 0.0


def _teacher(name: str, students: Sequence[Sequence[Run]], teacher_runs: Sequence[Run]) -> Teacher:
    """A teacher as its students' summaries describe it; ``students`` are grouped by the teacher's sha256.

    Each of these groups contributes the value that it recorded most often, or else first.
    """

    def recorded(part: str, key: str) -> Spread | None:
        modes = []
        for runs in students:
            scores = [score for run in runs if (score := run.score(part, key)) is not None]
            modes += [max(dict.fromkeys(scores), key=scores.count)] if scores else []
        return spread(modes)

    trained = [run for run in teacher_runs if any(is_teacher_of(run, runs[0]) for runs in students)]
    same = [run for run in trained if run.data.get("sha256") == students[0][0].data.get("sha256")]

    def measured(part: str, key: str) -> Spread | None:
        return spread([score for run in same if (score := run.score(part, key)) is not None])

    node = students[0][0].teacher
    return Teacher(
        name,
        node.get("parameters"),
        node.get("macs"),
        recorded("best", "teacher/acc"),
        measured("last", "val/acc"),
        recorded("test", "teacher_acc") or recorded("best", "teacher/acc"),
        measured("test", "ece"),
        recorded("test", "teacher_nll"),
        tuple(trained),
    )


def _from_runs(group: Group) -> Teacher:
    node = group.first.student
    return Teacher(
        group.label,
        node.get("parameters"),
        node.get("macs"),
        group.spread("best", "val/acc"),
        group.spread("last", "val/acc"),
        group.spread("test", "acc"),
        group.spread("test", "ece"),
        group.spread("test", "nll"),
        group.runs,
    )
