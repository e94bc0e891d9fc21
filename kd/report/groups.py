"""Groups runs of the same recipe over several seeds, with a label, a role and a baseline."""

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

# keys that depend on the machine or on paths, not on the method
IGNORED = re.compile(
    r"(.*\.)?(seed|root|download|workers|num_workers|resident|eval_batch_size|checkpoint|accelerator|devices|num_nodes|strategy"
    r"|enable_progress_bar|enable_model_summary|log_every_n_steps|default_root_dir|deterministic)"
)
# how a teacher was trained and cached; the recipe holds its name instead
TEACHER_KEYS = re.compile(r"teacher|.*\.(_target_|checkpoint|epochs|seed|cache|min_accuracy|(data|optim)(\..*)?)")
RUN_FILES = ("student.safetensors", "checkpoints", "best.ckpt", "last.ckpt")
UNSET: tuple[Any, ...] = (None, {})
SCHEDULE = ("data.", "optim.", "trainer.")
WARNING = "data.val=test: the best epoch was chosen on the test set, which biases every figure except the last epoch's"


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, one per seed.

    ``role`` is ``teacher``, ``scratch`` or ``student``; ``base`` is the method's name, to which ``label`` adds options.
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
        """Whether its teacher's logits were shuffled across images, so that no gain is expected."""
        return "teacher.shuffle" in self.recipe

    @property
    def first(self) -> Run:
        return self.runs[0]

    def scores(self, part: str, key: str) -> dict[int, float]:
        """A score of ``best``, ``last`` or ``test`` by seed, where measured."""
        measured = {run.seed: run.score(part, key) for run in self.runs}
        return {seed: score for seed, score in measured.items() if score is not None}

    def accuracies(self) -> dict[int, float]:
        """The accuracy that verdicts refer to, by seed."""
        return {run.seed: run.accuracy for run in self.runs if run.accuracy is not None}

    def spread(self, part: str, key: str) -> Spread | None:
        """Mean and standard deviation of a score over the seeds."""
        return spread(list(self.scores(part, key).values()))


def groups(runs: Sequence[Run]) -> tuple[list[Group], list[Excluded]]:
    """Teachers, scratch students and methods, in this order; and the runs that are excluded.

    Raises:
        InputError: students on different data.
    """
    roles = {run.name: role_of(run, runs) for run in runs}
    tested = {run.name: run for run in runs if run.score("test", "acc") is not None}
    excluded = [
        Excluded(run.name, "no test accuracy, unlike the others") for run in runs if run.name not in (tested or roles)
    ]
    runs = list(tested.values()) or runs
    same_data([run for run in runs if roles[run.name] != "teacher"] or list(runs))
    same: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        role = roles[run.name]
        key = (role, base_of(run, role), json.dumps(recipe(run, role), sort_keys=True, default=str))
        same.setdefault(key, []).append(run)
    unnamed = []
    for (role, base, _), members in same.items():
        newest, repeats = _one_per_seed(members)
        unnamed.append(Group(base, base, role, tuple(newest), recipe(newest[0], role)))
        excluded += repeats
    bases = list(dict.fromkeys(group.base for group in unnamed))
    return sorted(_named(unnamed), key=lambda group: _order(group, bases)), excluded


def role_of(run: Run, runs: Sequence[Run]) -> str:
    """``teacher``, ``scratch`` or ``student``: as recorded by kd-compare, else derived from teachers and students."""
    if run.cell.get("role") in ("teacher", "scratch", "student"):
        return run.cell["role"]
    if run.summary.get("task") == "teacher":
        return "teacher"
    students = [other for other in runs if other.teacher]
    names = {other.student["name"] for other in students}
    if any(is_teacher_of(run, other) for other in students) and run.student["name"] not in names:
        return "teacher"
    name, total = run.objective.get("name"), str((run.objective.get("terms") or [""])[0])
    labels_only = not run.teacher and (name == "ce" or (name is None and " + " not in total))  # else self-distillation
    return "scratch" if labels_only or only_labels(run) else "student"


def only_labels(run: Run) -> bool:
    """Whether the objective is cross-entropy alone, even if a teacher was evaluated."""
    return bool(re.fullmatch(r"total = \S+ \* ce", str((run.objective.get("terms") or [""])[0])))


def is_teacher_of(run: Run, student: Run) -> bool:
    """Whether the student of ``run`` is the teacher of ``student``, by sha256 or by folder."""
    sha256 = run.student.get("sha256")
    if sha256 and sha256 == student.teacher.get("sha256"):
        return True
    checkpoint = student.teacher.get("checkpoint")
    return bool(checkpoint) and str(checkpoint).rstrip("/").endswith("/" + run.name.rpartition("/")[2])


def base_of(run: Run, role: str) -> str:
    """A method's name without options."""
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
    """Everything that affects the result except the seed, as dotted keys; T, alpha and teacher only for methods."""
    config = run.config
    if config:
        parts = {key: config.get(key) for key in ("student", "data", "objective", "optim", "trainer")}
    else:
        parts = {"student": run.student.get("config"), "data": run.data.get("config")}
        parts |= {"trainer": {"max_epochs": run.training.get("epochs")}}
    options = {
        key: value for key, value in nested.flatten(parts).items() if value not in UNSET and not IGNORED.fullmatch(key)
    }
    options["student"] = run.student["name"]
    if checkpoint := run.student.get("checkpoint"):
        options["student.checkpoint"] = initial_weights(str(checkpoint))
    if role == "student":
        options |= {key: run.objective.get(key) for key in ("T", "alpha")}
        options["teacher"] = run.teacher.get("name")
        teacher = nested.flatten({"teacher": config.get("teacher")})
        teacher = {key: value for key, value in teacher.items() if value not in UNSET and value is not False}
        options |= {key: value for key, value in teacher.items() if not TEACHER_KEYS.fullmatch(key)}
    if ema := (config.get("callbacks") or {}).get("ema"):
        options["callbacks.ema.decay"] = ema.get("decay")
    return options


def initial_weights(checkpoint: str) -> str:
    """The name of the run or file that initial weights come from, without the seed's folder of a comparison."""
    path = PurePath(checkpoint)
    while path.name.isdigit() or path.name in RUN_FILES:
        path = path.parent
    return path.name


def same_data(runs: Sequence[Run]) -> None:
    """Checks that all runs were evaluated on the same images and splits.

    Raises:
        InputError: they were not; two folders and the difference are named.
    """
    facts = [_facts(run) for run in runs]
    for run, fact in zip(runs[1:], facts[1:]):
        for key in sorted(set(fact) & set(facts[0]), key=list(fact).index):
            if fact[key] != facts[0][key]:
                raise InputError(
                    f"{runs[0].folder} and {run.folder} are on different data: {key} is {_short(facts[0][key])} and "
                    f"{_short(fact[key])}; set runs= to a folder with a single dataset"
                )


def warning_of(every: Iterable[Group]) -> str:
    """A warning if the best epoch was selected on the test set, else an empty string."""
    chose = any((run.data.get("config") or {}).get("val") == "test" for group in every for run in group.runs)
    return WARNING if chose else ""


def baseline(group: Group, every: Iterable[Group]) -> tuple[Group | None, list[str]]:
    """The scratch group of the same student with the most similar training, and how its training differs."""
    candidates = [g for g in every if g.role == "scratch" and _student(g) == _student(group)]
    if not candidates:
        return None, []
    nearest = min(candidates, key=lambda g: (len(differences(g, group)), -len(set(g.seeds) & set(group.seeds))))
    return nearest, differences(nearest, group)


def differences(one: Group, other: Group) -> list[str]:
    """The keys of data, optimiser and trainer that differ between two recipes, with both values."""
    keys = [key for key in sorted(set(one.recipe) | set(other.recipe)) if key.startswith(SCHEDULE)]
    pairs = [(key, one.recipe.get(key), other.recipe.get(key)) for key in keys]
    return [f"{key}={_short(a)} vs {_short(b)}" for key, a, b in pairs if a != b]


def _order(group: Group, bases: list[str]) -> tuple[float, ...]:
    numbers = [float(group.recipe.get(key) or 0) for key in ("T", "alpha")]
    return (("teacher", "scratch", "student").index(group.role), group.control, bases.index(group.base), *numbers)


def _student(group: Group) -> dict[str, Any]:
    return {key: value for key, value in group.recipe.items() if key == "student" or key.startswith("student.")}


def _one_per_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Excluded]]:
    newest: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.modified):
        newest[run.seed] = run
    repeats = [run for run in runs if newest[run.seed] is not run]
    excluded = [Excluded(run.name, f"repeats {newest[run.seed].name}: same recipe, same seed") for run in repeats]
    return [newest[seed] for seed in sorted(newest)], excluded


def _named(unnamed: list[Group]) -> list[Group]:
    """Adds to each label the fewest options that distinguish it from other groups of its method."""
    named = []
    for group in unnamed:
        others = [g for g in unnamed if (g.role, g.base) == (group.role, group.base) and g is not group]
        keys: list[str] = []
        ambiguous = others
        varying = {key for g in others for key in set(g.recipe) | set(group.recipe)}
        for key in sorted(varying, key=_priority):
            equal = [g for g in ambiguous if g.recipe.get(key) == group.recipe.get(key)]
            differs = any(g.recipe.get(key) != group.recipe.get(key) for g in others)
            if len(equal) < len(ambiguous) or (key in ("T", "alpha") and differs):
                keys, ambiguous = [*keys, key], equal
        label = " ".join([group.base, *(_option(key, group.recipe.get(key)) for key in keys)])
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
    facts = {"classes": run.data["classes"], "shape": run.data.get("shape")}
    facts |= {f"data.{key}": value for key, value in config.items() if key in ("_target_", "val", "split_seed")}
    facts |= {f"the {part} count": run.data.get(part) for part in ("train", "val", "test")}
    return {**facts, "data.sha256": run.data.get("sha256")}


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:12] + "..."
