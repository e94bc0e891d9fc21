"""Which runs belong together: the same recipe over several seeds, its name, its part and its baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kd.errors import InputError
from kd.registry import nested
from kd.report.collect import Excluded, Run
from kd.report.statistics import Spread, spread

# what a machine or a place asks for, not the method
ELSEWHERE = re.compile(
    r"(.*\.)?(seed|root|download|workers|num_workers|resident|eval_batch_size|checkpoint|accelerator|devices|num_nodes|strategy"
    r"|enable_progress_bar|enable_model_summary|log_every_n_steps|default_root_dir|deterministic)"
)
# how a teacher came by its weights, and how its answers are kept: its name stands for it
OF_TEACHERS = re.compile(r"teacher|.*\.(_target_|checkpoint|epochs|seed|cache|min_accuracy|(data|optim)(\..*)?)")
WITHIN_A_RUN = ("student.safetensors", "checkpoints", "best.ckpt", "last.ckpt")
COURSE = ("data.", "optim.", "trainer.")
FLAG = "data.val=test: the best epoch was chosen on the test set, which flatters every figure but the last epoch's"


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, one for each seed.

    ``role`` is teacher, scratch or student; ``base`` the method without the numbers that ``label`` adds.
    """

    label: str
    base: str
    role: str
    runs: tuple[Run, ...]
    recipe: dict[str, Any]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def control(self) -> bool:
        """Whether its teacher's answers were shuffled among the images: it should gain nothing."""
        return "teacher.shuffle" in self.recipe

    @property
    def first(self) -> Run:
        return self.runs[0]

    def scores(self, part: str, key: str) -> dict[int, float]:
        """Seed to a score of ``best``, ``last`` or ``test``, where measured."""
        measured = {run.seed: run.score(part, key) for run in self.runs}
        return {seed: score for seed, score in measured.items() if score is not None}

    def accuracies(self) -> dict[int, float]:
        """Seed to the accuracy that verdicts are about."""
        return {run.seed: run.accuracy for run in self.runs if run.accuracy is not None}

    def spread(self, part: str, key: str) -> Spread | None:
        """Mean and deviation of a score over the seeds."""
        return spread(list(self.scores(part, key).values()))


def groups(runs: Sequence[Run]) -> tuple[list[Group], list[Excluded]]:
    """Teachers, scratch students and methods, in this order; and the runs that repeat another one.

    Raises:
        InputError: students on different data.
    """
    roles = {run.name: role_of(run, runs) for run in runs}
    tested = {run.name: run for run in runs if run.score("test", "acc") is not None}
    left = [
        Excluded(run.name, "no test accuracy, as the others have") for run in runs if run.name not in (tested or roles)
    ]
    runs = list(tested.values()) or runs
    same_data([run for run in runs if roles[run.name] != "teacher"] or list(runs))
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        role = roles[run.name]
        key = (role, base_of(run, role), json.dumps(recipe(run, role), sort_keys=True, default=str))
        found.setdefault(key, []).append(run)
    made = []
    for (role, base, _), members in found.items():
        kept, repeats = _one_per_seed(members)
        made.append(Group(base, base, role, tuple(kept), recipe(kept[0], role)))
        left += repeats
    bases = list(dict.fromkeys(group.base for group in made))
    return sorted(_named(made), key=lambda group: _place(group, bases)), left


def role_of(run: Run, runs: Sequence[Run]) -> str:
    """teacher, scratch or student: as kd-compare says, else by whether a teacher taught it or it taught others."""
    if run.cell.get("role") in ("teacher", "scratch", "student"):
        return run.cell["role"]
    if run.summary.get("task") == "teacher":
        return "teacher"
    taught = [other for other in runs if other.teacher]
    names = {other.student["name"] for other in taught}
    if any(is_teacher_of(run, other) for other in taught) and run.student["name"] not in names:
        return "teacher"
    name, total = run.objective.get("name"), str((run.objective.get("terms") or [""])[0])
    untaught = not run.teacher and (name == "ce" or (name is None and " + " not in total))  # else it teaches itself
    return "scratch" if untaught or only_labels(run) else "student"


def only_labels(run: Run) -> bool:
    """Whether the objective is cross-entropy alone: a teacher that was measured taught nothing."""
    return bool(re.fullmatch(r"total = \S+ \* ce", str((run.objective.get("terms") or [""])[0])))


def is_teacher_of(run: Run, student: Run) -> bool:
    """Whether one run's student is another run's teacher, by fingerprint or by folder."""
    sha256 = run.student.get("sha256")
    if sha256 and sha256 == student.teacher.get("sha256"):
        return True
    checkpoint = student.teacher.get("checkpoint")
    return bool(checkpoint) and str(checkpoint).rstrip("/").endswith("/" + run.name.rpartition("/")[2])


def base_of(run: Run, role: str) -> str:
    """A method's name without its numbers."""
    if label := run.cell.get("label"):
        return str(label)
    if role == "scratch" and run.student.get("checkpoint"):
        return "probe" if run.student.get("freeze") == "backbone" else "fine-tuned"
    if role != "student":
        return str(run.student["name"]) if role == "teacher" else "scratch"
    if name := run.objective.get("name"):
        return str(name)
    terms = [str(line).partition(" = ")[0] for line in (run.objective.get("terms") or [])[1:]]
    return " + ".join(terms) or "student"


def recipe(run: Run, role: str) -> dict[str, Any]:
    """Everything that shapes the result except the seed, as flat keys; T, alpha and teacher only of methods."""
    config = run.config
    if config:
        parts = {key: config.get(key) for key in ("student", "data", "objective", "optim", "trainer")}
    else:
        parts = {"student": run.student.get("config"), "data": run.data.get("config")}
        parts |= {"trainer": {"max_epochs": run.training.get("epochs")}}
    kept = {
        key: value
        for key, value in nested.flatten(parts, empty=False).items()
        if value is not None and not ELSEWHERE.fullmatch(key)
    }
    kept["student"] = run.student["name"]
    kept |= {"student.checkpoint": begun_from(str(given))} if (given := run.student.get("checkpoint")) else {}
    if role == "student":
        kept |= {"T": run.objective.get("T"), "alpha": run.objective.get("alpha"), "teacher": run.teacher.get("name")}
        told = nested.flatten({"teacher": config.get("teacher")}, empty=False)
        told = {key: value for key, value in told.items() if value is not None and value is not False}
        kept |= {key: value for key, value in told.items() if not OF_TEACHERS.fullmatch(key)}
    if ema := (config.get("callbacks") or {}).get("ema"):
        kept["callbacks.ema.decay"] = ema.get("decay")
    return kept


def begun_from(checkpoint: str) -> str:
    """The run or file that weights come from, by name: of a comparison without the seed's own folder."""
    path = PurePath(checkpoint)
    while path.name.isdigit() or path.name in WITHIN_A_RUN:
        path = path.parent
    return path.name


def same_data(runs: Sequence[Run]) -> None:
    """Refuses runs that were measured on different images or splits.

    Raises:
        InputError: names two of the folders and what differs.
    """
    facts = [_facts(run) for run in runs]
    for run, fact in zip(runs[1:], facts[1:]):
        for key in sorted(set(fact) & set(facts[0]), key=list(fact).index):
            if fact[key] != facts[0][key]:
                raise InputError(
                    f"{runs[0].folder} and {run.folder} are on different data: {key} is {_short(facts[0][key])} and "
                    f"{_short(fact[key])}; give runs= a folder with one data set"
                )


def flag_of(every: Iterable[Group]) -> str:
    """A warning where the test set chose the best epoch, else nothing."""
    chose = any((run.data.get("config") or {}).get("val") == "test" for group in every for run in group.runs)
    return FLAG if chose else ""


def baseline(group: Group, every: Iterable[Group]) -> tuple[Group | None, list[str]]:
    """The scratch group of the same student, nearest in data, optimiser and course; and in what it differs."""
    alike = [g for g in every if g.role == "scratch" and _student(g) == _student(group)]
    if not alike:
        return None, []
    nearest = min(alike, key=lambda g: (len(unlike(g, group)), -len(set(g.seeds) & set(group.seeds))))
    return nearest, unlike(nearest, group)


def unlike(one: Group, other: Group) -> list[str]:
    """The keys of data, optimiser and trainer in which two recipes differ, with both values."""
    keys = [key for key in sorted(set(one.recipe) | set(other.recipe)) if key.startswith(COURSE)]
    pairs = [(key, one.recipe.get(key), other.recipe.get(key)) for key in keys]
    return [f"{key}={_short(a)} against {_short(b)}" for key, a, b in pairs if a != b]


def _place(group: Group, bases: list[str]) -> tuple[float, ...]:
    numbers = [float(group.recipe.get(key) or 0) for key in ("T", "alpha")]
    return (("teacher", "scratch", "student").index(group.role), group.control, bases.index(group.base), *numbers)


def _student(group: Group) -> dict[str, Any]:
    return {key: value for key, value in group.recipe.items() if key == "student" or key.startswith("student.")}


def _one_per_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Excluded]]:
    newest: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.modified):
        newest[run.seed] = run
    repeats = [run for run in runs if newest[run.seed] is not run]
    words = [Excluded(run.name, f"repeats {newest[run.seed].name}: same recipe, same seed") for run in repeats]
    return [newest[seed] for seed in sorted(newest)], words


def _named(made: list[Group]) -> list[Group]:
    """Adds to each label the fewest options that tell it from the others of its method."""
    named = []
    for group in made:
        others = [g for g in made if (g.role, g.base) == (group.role, group.base) and g is not group]
        keys: list[str] = []
        told = others
        varying = {key for g in others for key in set(g.recipe) | set(group.recipe)}
        for key in sorted(varying, key=_priority):
            rest = [g for g in told if g.recipe.get(key) == group.recipe.get(key)]
            among = [g for g in others if g.recipe.get(key) != group.recipe.get(key)]
            if len(rest) < len(told) or (key in ("T", "alpha") and among):
                keys, told = [*keys, key], rest
        words = [_option(key, group.recipe.get(key)) for key in keys]
        label = " ".join([group.base, *words])
        named.append(Group(label, group.base, group.role, group.runs, group.recipe))
    return named


def _priority(key: str) -> tuple[int, str]:
    first = ("student", "teacher", "T", "alpha", "trainer.max_epochs")
    return (first.index(key) if key in first else len(first) + key.startswith("objective."), key)


def _option(key: str, value: Any) -> str:
    if key in ("student", "teacher"):
        return str(value)
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{'epochs' if key == 'trainer.max_epochs' else key}={_short(value)}"


def _facts(run: Run) -> dict[str, Any]:
    config = run.data.get("config") or {}
    kept = {k: v for k, v in config.items() if k in ("_target_", "val", "split_seed")}
    facts = {"classes": run.data["classes"], "shape": run.data.get("shape")}
    facts |= {f"data.{key}": value for key, value in kept.items()}
    facts |= {f"the {part} count": run.data.get(part) for part in ("train", "val", "test")}
    return {**facts, "data.sha256": run.data.get("sha256")}


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:12] + "..."
