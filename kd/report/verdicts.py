"""What the runs show about each method, in numbers and in one sentence that claims no more than they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kd.report.collect import Run
from kd.report.groups import Group, baseline, flag_of, is_teacher_of
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
    """A teacher's accuracy on validation and on the test set that its students were measured on, as shares."""

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
    """Groups of one method that differ in T and alpha, and the one with the highest validation accuracy."""

    base: str
    cells: dict[tuple[float, float], Group]
    best: Group

    @property
    def grid(self) -> bool:
        """Whether most of the places that its T and alpha span are taken; a search leaves most of them empty."""
        places = len({T for T, _ in self.cells}) * len({alpha for _, alpha in self.cells})
        return 2 * len(self.cells) >= places


@dataclass(frozen=True)
class Gain:
    """A method against its scratch baseline, paired by seed; ``p`` is adjusted by Holm over all but controls."""

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
        """The verdict with its numbers."""
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
        """Whether scratch is ahead on average."""
        return self.paired is not None and self.paired.mean < 0


def teachers(every: Sequence[Group]) -> list[Teacher]:
    """The teachers of the students at hand; where there is no student, the teachers' runs themselves."""
    methods = [group for group in every if group.role != "teacher"]
    students = [run for group in sorted(methods, key=lambda group: group.control) for run in group.runs]
    own = [run for group in every if group.role == "teacher" for run in group.runs]
    named: dict[str, dict[str, list[Run]]] = {}
    for run in students:
        if run.teacher:
            key = str(run.teacher.get("sha256") or run.teacher.get("checkpoint"))
            named.setdefault(str(run.teacher["name"]), {}).setdefault(key, []).append(run)
    made = [_teacher(name, list(taught.values()), own) for name, taught in named.items()]
    return made or [_own(group) for group in every if group.role == "teacher"]


def sweeps(every: Sequence[Group]) -> list[Sweep]:
    """The grids of T and alpha among the methods."""
    families: dict[str, list[Group]] = {}
    for group in every:
        if group.role == "student":
            rest = {k: v for k, v in group.recipe.items() if k not in ("T", "alpha") and not k.startswith("objective.")}
            families.setdefault(f"{group.base} {sorted(rest.items(), key=str)}", []).append(group)
    found = []
    for family in families.values():
        numbered = [group for group in family if None not in (group.recipe.get("T"), group.recipe.get("alpha"))]
        cells = {(float(group.recipe["T"]), float(group.recipe["alpha"])): group for group in numbered}
        if len(cells) == len(family) > 1:
            found.append(Sweep(family[0].base, dict(sorted(cells.items())), max(family, key=_validation)))
    return found


def gains(every: Sequence[Group], known: Sequence[Teacher]) -> list[Gain]:
    """One verdict for each method; of a sweep, for the setting that validation chose."""
    grids = sweeps(every)
    swept = {id(group) for grid in grids for group in grid.cells.values()}
    chosen = {id(grid.best) for grid in grids}
    judged = [g for g in every if g.role == "student" and (id(g) in chosen or id(g) not in swept)]
    results = [compared(group, every, known) for group in judged]
    plain = [result.p if result else None for _, _, result, _ in results]
    claims = holm([None if group.control else p for group, p in zip(judged, plain)])
    adjusted = [p if group.control else claim for group, p, claim in zip(judged, plain, claims)]
    count = sum(p is not None for p in claims)
    made = []
    for group, (base, unlike, result, closed), p in zip(judged, results, adjusted):
        grid = next((grid for grid in grids if grid.best is group), None)
        gain = Gain(group, base, result, p, closed, group.first.teacher.get("name"), kind_of(result, p), "", "")
        lead, detail = _finding(gain, count)
        made.append(replace(gain, lead=lead, detail=" ".join([detail, *_besides(gain, unlike, grid)])))
    return made


def compared(
    group: Group, every: Sequence[Group], known: Sequence[Teacher]
) -> tuple[Group | None, list[str], Paired | None, float | None]:
    """A method's scratch baseline, how that was trained otherwise, the paired gain, and the share of the gap closed."""
    base, unlike = baseline(group, every)
    result = paired(group.accuracies(), base.accuracies()) if base else None
    if base is None or result is None:
        return base, unlike, None, None
    teacher = next((t.test for t in known if t.name == group.first.teacher.get("name")), None)
    scores = base.accuracies()
    scratch = sum(scores[seed] for seed in result.seeds) / result.n
    return base, unlike, result, gap_closed(scratch + result.mean, scratch, teacher.mean if teacher else None)


def kind_of(result: Paired | None, p: float | None) -> str:
    """better, worse, hint (the interval excludes 0, Holm's p does not), same, or open (nothing can be said)."""
    if result is None or (result.low is None and (result.n == 1 or result.mean != 0)):
        return "open"
    if not result.excludes_zero:
        return "same"
    if p is not None and p >= SIGNIFICANT:
        return "hint"
    return "better" if result.mean > 0 else "worse"


def _finding(gain: Gain, count: int) -> tuple[str, str]:
    """What was found, and the numbers that it rests on; ``count`` methods share Holm's correction."""
    name, result, base = gain.group.label, gain.paired, gain.scratch
    if gain.group.control:
        name, count = f"{name} (control)", 1
    if base is None:
        student = gain.group.first.student["name"]
        advice = "train it with kd-train teacher=none objective=ce and the same seeds."
        return f"{name}: nothing to compare with", f"no scratch {student} is among the runs; {advice}"
    if result is None:
        has = f"it has {_seeds(gain.group.seeds)}, scratch has {_seeds(base.seeds)}."
        return f"{name}: nothing to pair", has
    much = f"{points(result.mean)} points of {_measure(gain.group)} accuracy"
    if result.n == 1:
        return f"{name}: one seed proves nothing", f"{much} at seed {result.seeds[0]}; run three seeds or more."
    if result.low is None or result.high is None:
        if result.mean == 0:
            return f"{name}: no difference", f"the same accuracy as scratch in each of {result.n} seeds."
        alike = f"{much} in each of {result.n} seeds alike, so that no spread can be estimated; more seeds would tell."
        return f"{name}: not decided", alike
    numbers = f"{much}, 95 % interval {points(result.low)} to {points(result.high)}, {result.n} paired seeds"
    p = p_text(gain.p) + (f" after Holm's correction for {count} methods" if count > 1 else "")
    if gain.kind == "same":
        width = f"{50 * (result.high - result.low):.1f}"
        return f"{name}: {TAGS['same']}", f"{numbers}. A difference under about {width} points would not show here."
    if gain.kind == "hint":
        return f"{name}: {gain.tag.removeprefix('control: ')}", f"{numbers}, but {p}."
    return f"{name} {'is worse than' if gain.negative else 'beats'} scratch", f"{numbers}, {p}."


def _besides(gain: Gain, unlike: Sequence[str], grid: Sweep | None) -> list[str]:
    """What a reader of the numbers must also know."""
    parts = []
    alone = sorted(set(gain.group.seeds) ^ set(gain.scratch.seeds)) if gain.scratch else []
    if alone and gain.paired is not None:
        has = "has" if len(alone) == 1 else "have"
        parts.append(f"Only {_seeds(gain.paired.seeds)} could be paired; {_seeds(alone)} {has} no partner.")
    if gain.closed is not None and gain.kind in ("better", "hint") and not gain.negative:
        parts.append(f"That is {100 * gain.closed:.0f} % of the gap to the teacher {gain.teacher}.")
    chosen_on_test = bool(flag_of([gain.group]))
    if grid is not None and chosen_on_test:
        parts.append(f"The test set chose this setting out of {len(grid.cells)} and the best epoch (data.val=test).")
    elif grid is not None:
        parts.append(f"Validation chose this setting out of {len(grid.cells)}.")
    elif chosen_on_test:
        parts.append("The best epoch was chosen on the test set (data.val=test).")
    if unlike:
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        parts.append(f"Scratch was not trained alike: {'; '.join(unlike[:3])}{more}.")
    return parts


def _measure(group: Group) -> str:
    return "validation" if group.first.score("test", "acc") is None else "test"


def _alone(group: Group, base: Group, result: Paired) -> str:
    if alone := sorted(set(group.seeds) ^ set(base.seeds)):
        few = f"Only {_seeds(result.seeds)} could be paired; "
        return few + f"{_seeds(alone)} {'has' if len(alone) == 1 else 'have'} no partner."
    return ""


def _seeds(seeds: Sequence[int]) -> str:
    *head, last = [str(seed) for seed in sorted(seeds)]
    return f"seeds {', '.join(head)} and {last}" if head else f"seed {last}"


def _validation(group: Group) -> float:
    scores = group.spread("best", "val/acc")
    return scores.mean if scores else 0.0


def _teacher(name: str, taught: Sequence[Sequence[Run]], own: Sequence[Run]) -> Teacher:
    """From its students' summaries: one value for each fingerprint, the one most often or else first recorded."""

    def recorded(part: str, key: str) -> Spread | None:
        usual = []
        for runs in taught:
            scores = [score for run in runs if (score := run.score(part, key)) is not None]
            usual += [max(dict.fromkeys(scores), key=scores.count)] if scores else []
        return spread(usual)

    trained = [run for run in own if any(is_teacher_of(run, runs[0]) for runs in taught)]
    same = [run for run in trained if run.data.get("sha256") == taught[0][0].data.get("sha256")]

    def measured(part: str, key: str) -> Spread | None:
        return spread([score for run in same if (score := run.score(part, key)) is not None])

    about = taught[0][0].teacher
    return Teacher(
        name,
        about.get("parameters"),
        about.get("macs"),
        recorded("best", "teacher/acc"),
        measured("last", "val/acc"),
        recorded("test", "teacher_acc") or recorded("best", "teacher/acc"),
        measured("test", "ece"),
        recorded("test", "teacher_nll"),
        tuple(trained),
    )


def _own(group: Group) -> Teacher:
    about = group.first.student
    return Teacher(
        group.label,
        about.get("parameters"),
        about.get("macs"),
        group.spread("best", "val/acc"),
        group.spread("last", "val/acc"),
        group.spread("test", "acc"),
        group.spread("test", "ece"),
        group.spread("test", "nll"),
        group.runs,
    )
