"""kd-report: every figure recomputed independently from made-up run folders, and the content of the page."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import recall_score
from torchmetrics.functional.classification import multiclass_calibration_error

import kd
import kd.cli
from kd.errors import InputError
from kd.report import Report, predictions, tables, write
from kd.report.statistics import gap_closed, holm, paired, spread
from kd.report.study import Study, commands, read_study
from kd.report.verdicts import Gain

accuracy = st.integers(0, 359).map(lambda right: right / 359)
scores = st.dictionaries(st.integers(0, 7), accuracy, min_size=1)


def only(study: Study) -> Gain:
    (gain,) = study.gains
    return gain


# the statistics


@given(scores, scores)
def test_a_paired_interval_is_scipys_over_the_common_seeds(ours: dict[int, float], base: dict[int, float]) -> None:
    result, common = paired(ours, base), sorted(set(ours) & set(base))
    if result is None:
        assert not common
        return
    first, second = np.array([ours[s] for s in common]), np.array([base[s] for s in common])
    assert result.seeds == tuple(common)
    assert result.mean == pytest.approx(np.mean(first - second), abs=1e-12)
    assert result.wins == sum(first > second)
    if len(common) < 2 or np.ptp(first - second) < 1e-9:
        assert result.low is result.high is result.p is None
        return
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high), abs=1e-9)
    assert result.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert result.std == pytest.approx(np.std(first - second, ddof=1), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1))
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    result = spread(values)
    assert result is not None
    assert result.mean == pytest.approx(np.mean(values))
    assert result.n == len(values)
    assert result.std == (None if len(values) == 1 else pytest.approx(np.std(values, ddof=1), abs=1e-12))


@given(st.lists(st.none() | st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(ps: list[float | None]) -> None:
    tested = [at for at, p in enumerate(ps) if p is not None]
    subsets = [s for size in range(1, len(tested) + 1) for s in itertools.combinations(tested, size)]
    for at, adjusted in enumerate(holm(ps)):
        if ps[at] is None:
            assert adjusted is None
        else:
            worst = max(min(1, len(s) * min(ps[i] for i in s)) for s in subsets if at in s)  # type: ignore[type-var]
            assert adjusted == pytest.approx(worst)


def test_gap_closed_needs_a_better_teacher() -> None:
    assert gap_closed(0.92, 0.90, 0.95) == pytest.approx(0.4)
    assert gap_closed(0.92, 0.90, 0.90) is None
    assert gap_closed(0.92, 0.90, None) is None


def test_measures_of_predictions_agree_with_other_libraries() -> None:
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 5, 400), generator.normal(0, 2, (400, 5)).astype(np.float16)
    outputs = predictions.outputs(logits, labels)
    shares = torch.tensor(logits).float().softmax(-1)
    expected = multiclass_calibration_error(shares, torch.tensor(labels), 5, n_bins=15)
    assert predictions.pooled([(outputs, labels)]).ece == pytest.approx(float(expected), abs=1e-6)
    brier = np.square(shares.double().numpy() - np.eye(5)[labels]).sum(1).mean()
    assert outputs.brier == pytest.approx(brier, abs=1e-6)
    assert outputs.correlation == pytest.approx(np.corrcoef(logits.astype(float).T), abs=1e-9)
    ours = predictions.per_class(outputs.predicted, labels, 5)
    assert ours == pytest.approx(recall_score(labels, logits.argmax(1), average=None))


# what a study says


def test_every_figure_of_the_tables_follows_from_the_csv(tmp_path: Path) -> None:
    base, ours = [0.90, 0.91, 0.89, 0.92, 0.90], [0.93, 0.935, 0.915, 0.93, 0.94]
    planted.seeds(tmp_path, "scratch", base)
    planted.seeds(tmp_path, "kd", ours)
    planted.seeds(tmp_path, "dkd", [0.90, 0.92, 0.88, 0.93, 0.90], objective="dkd")
    report = write(tmp_path, tmp_path)
    lines = list(csv.DictReader((tmp_path / "results.csv").open()))
    read = {(line["label"], int(line["seed"])): float(line["test_acc"]) for line in lines}
    first, second = (np.array([read[label, seed] for seed in range(5)]) for label in ("kd", "scratch"))
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    gain = 100 * (first - second).mean()
    row = next(row for row in tables.main(report.study).rows if row[0] == "kd")
    assert row[1] == "5"
    assert row[4] == f"{100 * first.mean():.2f} ± {100 * first.std(ddof=1):.2f}"
    assert row[5] == f"{gain:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    assert row[6] == f"{100 * (first.mean() - second.mean()) / (0.97 - second.mean()):.0f} %"
    verdicts = {verdict.split(" ")[0].rstrip(":"): verdict for verdict in report.verdicts}
    p = 2 * stats.ttest_rel(first, second).pvalue
    assert verdicts["kd"].startswith(f"kd beats scratch: {gain:+.2f} points of test accuracy, 95 % interval ")
    assert f"p = {p:.3f} after Holm's correction for 2 methods" in verdicts["kd"]
    assert "dkd: no difference beyond seed spread" in verdicts["dkd"]
    assert all(cell in (tmp_path / "report.md").read_text() for cell in row[:5])


def test_one_seed_proves_nothing(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.80])
    planted.seeds(tmp_path, "kd", [0.95])
    gain = only(read_study(tmp_path))
    assert gain.kind == "open"
    assert gain.sentence.startswith("kd: one seed proves nothing: +15.00 points of test accuracy at seed 0")
    assert "beats" not in gain.sentence


@pytest.mark.parametrize(("ours", "says"), [(0.0, "no difference: the same"), (0.01, "no spread can be estimated")])
def test_equal_results_give_no_interval(tmp_path: Path, ours: float, says: str) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.80, 0.85])
    planted.seeds(tmp_path, "kd", [0.90 + ours, 0.80 + ours, 0.85 + ours])
    gain = only(read_study(tmp_path))
    assert says in gain.sentence
    assert gain.kind == ("same" if ours == 0 else "open")
    assert gain.paired is not None
    assert gain.paired.low is None


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.91, 0.89])
    planted.seeds(tmp_path, "kd", [0.94, 0.92, 0.10, 0.20], first=1)
    gain = only(read_study(tmp_path))
    assert gain.paired is not None
    assert gain.paired.seeds == (1, 2)
    assert gain.paired.mean == pytest.approx(0.03)
    assert "Only seeds 1 and 2 could be paired; seeds 0, 3 and 4 have no partner." in gain.sentence


def test_probes_of_different_backbones_are_different_methods(tmp_path: Path) -> None:
    for name, scores, weights in (
        ("ressl", [0.80, 0.81], "runs/compare/resnet8/ressl/{seed}/student.safetensors"),
        ("random", [0.50, 0.40], "untrained"),
    ):
        for seed, score in enumerate(scores):
            extra = {"name": "cnn", "checkpoint": weights.format(seed=seed), "freeze": "backbone"}
            planted.scratch(tmp_path / name / str(seed), seed=seed, test=score, extra=extra)
    labels = {group.label: group.seeds for group in read_study(tmp_path).groups}
    assert labels == {"probe student.checkpoint=ressl": (0, 1), "probe student.checkpoint=untrained": (0, 1)}


def test_missing_common_seed_or_scratch_is_reported(tmp_path: Path) -> None:
    planted.seeds(tmp_path / "a", "scratch", [0.90])
    planted.seeds(tmp_path / "a", "kd", [0.94], first=5)
    assert "nothing to pair: it has seed 5, scratch has seed 0" in only(read_study(tmp_path / "a")).sentence
    planted.seeds(tmp_path / "b", "kd", [0.94, 0.95])
    assert "no scratch cnn is among the runs" in only(read_study(tmp_path / "b")).sentence
    planted.seeds(tmp_path / "c", "kd", [0.94, 0.95])
    planted.seeds(tmp_path / "c", "scratch", [0.90, 0.91], student="mlp")
    assert "no scratch cnn is among the runs" in only(read_study(tmp_path / "c")).sentence


def test_without_a_teacher_there_is_a_table_and_no_verdict(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.91])
    report = write(tmp_path, tmp_path / "out")
    assert report.verdicts == []
    assert "scratch" in report.markdown()
    assert "Did distillation help?" not in (tmp_path / "out/report.html").read_text()


def test_interval_excluding_0_but_rejected_by_holm_is_a_hint(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.900, 0.910, 0.890, 0.900])
    for name, ours in (("kd", [0.904, 0.915, 0.902, 0.906]), ("dkd", [0.90, 0.91, 0.90, 0.89]), ("at", [0.9] * 4)):
        planted.seeds(tmp_path, name, ours, objective=name)
    gain = next(gain for gain in read_study(tmp_path).gains if gain.group.label == "kd")
    assert gain.paired is not None
    assert gain.paired.excludes_zero
    assert gain.p is not None
    assert gain.p > 0.05
    assert gain.sentence.startswith("kd: a hint, no proof")


def test_failed_damaged_and_later_runs_are_listed(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.91])
    planted.seeds(tmp_path, "kd", [0.92, 0.93])
    failed = planted.plant(tmp_path / "kd/2", seed=2)
    (failed / "summary.json").unlink()
    planted.history(failed, [0.5, 0.6])
    (planted.plant(tmp_path / "kd/3", seed=3) / "summary.json").write_text("{")
    planted.plant(tmp_path / "kd/4", seed=4, format_version=99)
    planted.plant(tmp_path / "kd/5", seed=5, metrics={"best": {"val/acc": float("nan")}, "last": {"val/acc": 1}})
    planted.typed(tmp_path / "kd/0", "seed=0")  # Hydra's record is no run
    result = read_study(tmp_path)
    reasons = {run.name: run.why for run in result.excluded}
    assert reasons["kd/2"] == "unfinished or failed: after epoch 1, no summary.json"
    assert set(reasons) == {"kd/2", "kd/3", "kd/4", "kd/5"}
    assert "later version" in reasons["kd/4"]
    assert only(result).group.seeds == (0, 1)
    write(tmp_path, tmp_path)
    assert all(name in (tmp_path / "report.html").read_text() for name in reasons)
    assert all(name in (tmp_path / "results.csv").read_text() for name in reasons)


@given(st.data())
def test_any_summary_is_accepted_by_the_report(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("runs")
    planted.seeds(root, "scratch", [0.90, 0.91])
    path = planted.plant(root / "kd/0") / "summary.json"
    summary = json.loads(path.read_text())
    node, keys = summary, data.draw(st.sampled_from(sorted(flat(summary))))
    *inner, last = keys.split("|")
    for key in inner:
        node = node[key]
    node[last] = data.draw(st.sampled_from(["odd", -3, 1e999, None, [], {}, [1, "x"], True]))
    path.write_text(json.dumps(summary))
    with suppress(InputError):
        write(root, root)


def flat(node: dict[str, object], prefix: str = "") -> list[str]:
    """All keys of nested containers, joined by |."""
    keys = [f"{prefix}{key}" for key in node]
    return keys + [
        name for key, part in node.items() if isinstance(part, dict) for name in flat(part, f"{prefix}{key}|")
    ]


def test_a_repeated_run_counts_once(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.91])
    planted.seeds(tmp_path, "scratch/again", [0.90], teacher=None, objective="ce")
    result = read_study(tmp_path)
    assert [group.seeds for group in result.groups] == [(0, 1)]
    assert [run.why for run in result.excluded] in (
        [f"repeats {name}: same recipe, same seed"] for name in ("scratch/0", "scratch/again/0")
    )


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"sha256": "e" * 64}, "data.sha256 is dddddddddddd... and eeeeeeeeeeee..."),
        ({"classes": 100}, "classes is 10 and 100"),
        ({"config": {"val": 0.2}}, "data.val is 0.1 and 0.2"),
        ({"train": 100}, "the train count is 1296 and 100"),
    ],
)
def test_mixed_data_is_refused(tmp_path: Path, other: dict[str, object], what: str) -> None:
    planted.seeds(tmp_path, "a", [0.90])
    planted.plant(tmp_path / "b/0", data=other)
    with pytest.raises(InputError) as refused:
        write(tmp_path, tmp_path / "out")
    line = str(refused.value)
    assert what in line
    assert line.startswith(f"{tmp_path / 'a/0'} and {tmp_path / 'b/0'} are on different data")
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


def test_teacher_trained_on_more_data_is_allowed(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.91])
    planted.seeds(tmp_path, "kd", [0.92, 0.93])
    more = {"train": 5000, "sha256": "f" * 64}
    planted.scratch(
        tmp_path / "teachers/resnet8-1", task="teacher", student="resnet8", test=0.5, data=more, objective=None
    )
    (teacher,) = read_study(tmp_path).teachers
    assert teacher.test is not None
    assert teacher.test.mean == pytest.approx(0.97)  # as its students' test set has it


def test_a_shuffled_teacher_does_not_lower_the_teachers_accuracy(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.91])
    planted.seeds(tmp_path, "kd", [0.93, 0.95])
    cell = {"study": "s", "role": "student", "label": "shuffled", "seed": 0}
    shuffled = {"teacher": {"shuffle": True}}
    planted.seeds(tmp_path, "control", [0.80, 0.79], teacher_test=0.1, cell=cell, config=shuffled)
    result = read_study(tmp_path)
    assert result.teachers[0].test is not None
    assert result.teachers[0].test.mean == pytest.approx(0.97)
    kd, control = result.gains
    assert control.sentence.startswith("shuffled (control): ")
    assert kd.paired is not None
    assert kd.p == kd.paired.p  # a control is no claim: Holm does not count it
    assert "Holm" not in kd.sentence


def test_methods_have_the_names_of_kd_compare(tmp_path: Path) -> None:
    for role, label in (("scratch", "scratch"), ("student", "mine")):
        for seed in (0, 1):
            cell = {"study": "s", "role": role, "label": label, "seed": seed}
            planted.plant(tmp_path / label / str(seed), seed=seed, cell=cell, test=0.9 + seed / 100)
    result = read_study(tmp_path)
    assert [(group.role, group.label) for group in result.groups] == [("scratch", "scratch"), ("student", "mine")]


def test_groups_are_named_by_their_differences(tmp_path: Path) -> None:
    planted.plant(tmp_path / "0", config={"optim": {"_target_": "kd.optim.sgd", "lr": 0.1}})
    planted.plant(tmp_path / "1", config={"optim": {"_target_": "kd.optim.sgd", "lr": 0.05}})
    planted.plant(tmp_path / "2", objective="dkd")
    planted.plant(tmp_path / "3", objective=None)
    assert {group.label for group in read_study(tmp_path).groups} == {
        "kd optim.lr=0.1",
        "kd optim.lr=0.05",
        "dkd",
        "student",
    }


def test_scratch_student_with_other_training_options_is_reported(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.90, 0.91], config={"trainer": {"max_epochs": 1}})
    planted.seeds(tmp_path, "kd", [0.92, 0.94])
    assert "Scratch was trained differently: trainer.max_epochs=1 vs 3." in only(read_study(tmp_path)).sentence


def grid(root: Path) -> None:
    """A sweep whose best setting on test is not its best on validation."""
    planted.seeds(root, "scratch", [0.90, 0.91])
    for T, alpha in itertools.product((1.0, 4.0), (0.5, 0.9)):
        for seed in (0, 1):
            test, val = (0.99, 0.90) if T == 1 else (0.92 + seed / 50, 0.95 if alpha == 0.5 else 0.94)
            name = f"sweep/{T:g}-{alpha:g}-{seed}"
            planted.plant(root / name, seed=seed, T=T, alpha=alpha, test=test, val=(val, 0.9))


def test_a_sweep_is_judged_at_the_setting_that_validation_chose(tmp_path: Path) -> None:
    grid(tmp_path)
    result = read_study(tmp_path)
    (sweep,) = result.sweeps
    assert len(sweep.cells) == 4
    gain = only(result)
    assert gain.group.label == "kd T=4 alpha=0.5"
    assert gain.sentence.endswith("This setting was chosen on validation out of 4.")
    assert (
        "Best setting by validation accuracy out of 4: T = 4, alpha = 0.5, with 95.00 ± 0.00 % on validation"
        in tables.best_setting(result, sweep)
    )


def test_a_search_is_a_list_and_not_an_empty_grid(tmp_path: Path) -> None:
    for at, T in enumerate((1.5, 2.5, 3.7, 9.1)):
        planted.plant(tmp_path / str(at), T=T, alpha=0.2 + at / 10, val=(0.90 + (T == 3.7) / 50, 0.9))
    report = write(tmp_path, tmp_path)
    (sweep,) = report.study.sweeps
    table = tables.heat(report.study, sweep)
    assert not sweep.grid
    assert table.rows[0] == ("T = 3.7, alpha = 0.4", "92.00")
    assert len(table.rows) == 4
    assert "The ring marks the best setting." in (tmp_path / "report.html").read_text()


def test_choosing_on_the_test_set_is_flagged_in_every_table(tmp_path: Path) -> None:
    for name, ours in (("scratch", [0.90, 0.91]), ("kd", [0.92, 0.94])):
        planted.seeds(tmp_path, name, ours, data={"config": {"val": "test"}, "val": 359})
    report = write(tmp_path, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.count("\n| ---") == text.count("data.val=test: the best epoch was chosen on the test set") == 4
    assert "test best" in report.markdown()
    assert all("data.val=test" in verdict for verdict in report.verdicts)


# predictions


def world(root: Path) -> tuple[np.ndarray, torch.Tensor]:
    """A study on the digits in which distilling mends image 7 and spoils image 9; labels and images of the test set."""
    data = kd.Data(kd.Memory(kd.data["digits"]()))
    node = data.describe() | {"config": {"_target_": "kd.data.sources.digits", "val": 0.1, "split_seed": 0}}
    images, targets = data.memory.parts["test"]
    labels = targets.numpy()
    certain = 6.0 * np.eye(10)[labels]
    for name, wrong in (("scratch", 7), ("kd", 9)):
        for seed in (0, 1):
            logits = certain + np.random.default_rng(seed).normal(0, 0.1, certain.shape)
            logits[wrong] = np.roll(logits[wrong], 1)
            folder = root / name / str(seed)
            make = planted.scratch if name == "scratch" else planted.plant
            make(folder, seed=seed, test=0.9 + seed / 100 + (name == "kd") / 50, data=node)
            planted.predictions(folder, labels, logits, certain if name == "kd" else None)
            planted.history(folder, [0.5, 0.8, 0.9 + seed / 50])
    return labels, images


class Page(HTMLParser):
    """Collects what a page asks for and shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.asks: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.asks += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Page, str]:
    """The report of a study with everything in it, and a label that would like to be code."""
    root = tmp_path_factory.mktemp("runs")
    world(root)
    cell = {"study": "s", "role": "student", "label": "<script>$x^2$ | _a_</script>", "seed": 0}
    planted.plant(root / "odd/0", cell=cell, data=json.loads((root / "kd/0/summary.json").read_text())["data"])
    report = write(root, root / "out")
    text = (root / "out/report.html").read_text()
    return report, Page(text), text


def test_page_has_no_requests_or_scripts(whole: tuple[Report, Page, str]) -> None:
    _, page, text = whole
    assert all(ask.startswith(("data:", "#")) for ask in page.asks)
    assert "script" not in page.tags
    assert not re.search(r"@import|url\((?!#)|@font-face", text)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_has_every_part(whole: tuple[Report, Page, str]) -> None:
    _, page, text = whole
    for heading in (
        "Did distillation help?",
        "Results",
        "Gain over scratch",
        "Curves",
        "Accuracy against cost",
        "Agreement and calibration",
        "Gain by class",
        "Images with changed predictions",
        "Difference of logit correlations",
        "Commands",
        "How to read this",
    ):
        assert heading in page.text
    assert page.tags.count("svg") >= 10
    assert "#0101" not in text  # every stand-in colour became the page's
    assert "<script>$x^2$ | _a_</script>" in page.text  # shown, not run, and not taken for mathematics


def test_page_is_deterministic(whole: tuple[Report, Page, str]) -> None:
    report, _, text = whole
    again = write(report.study.root, report.study.root / "again")
    assert (again.out / "report.html").read_text() == text


def test_the_images_whose_answer_changed_are_those_of_the_test_set(tmp_path: Path) -> None:
    labels, _ = world(tmp_path)
    result = read_study(tmp_path)
    ((_, ours, base),) = result.pairs()
    ((better,), (worse,)) = predictions.changed(ours, base)
    assert (better.index, better.label, better.student_correct, better.scratch_correct) == (7, labels[7], 2, 0)
    assert (worse.index, worse.student_correct, worse.scratch_correct, worse.teacher_class) == (9, 0, 2, labels[9])
    assert worse.student_class == (labels[9] + 1) % 10
    assert predictions.flips(ours[0], base[0]) == (1, 1)
    assert result.images is not None
    assert result.images.data_uri(7) != result.images.data_uri(9)
    assert result.images.data_uri(7).startswith("data:image/png;base64,")


def test_data_that_a_run_folder_names_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(tmp_path)
    (tmp_path / "evil_data.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in tmp_path.rglob("summary.json"):
        summary = json.loads(path.read_text())
        summary["data"]["config"]["_target_"] = "evil_data.load"
        path.write_text(json.dumps(summary))
    result = read_study(tmp_path)
    assert result.images is None
    assert "not registered with kd" in result.missing["images"]
    assert "evil_data" not in sys.modules


def test_other_data_on_this_machine_is_not_shown(tmp_path: Path) -> None:
    world(tmp_path)
    for path in tmp_path.rglob("summary.json"):
        path.write_text(path.read_text().replace('"test_share"', '"test_share"').replace('"sha256": "', '"sha256": "0'))
    result = read_study(tmp_path)
    assert result.images is None
    assert "its sha256 differs" in result.missing["images"]


@pytest.mark.parametrize("damage", ["bytes", "shape", "nan"])
def test_damaged_predictions_are_left_out_and_named(tmp_path: Path, damage: str) -> None:
    labels, _ = world(tmp_path)
    folder = tmp_path / "kd/0"
    if damage == "bytes":
        (folder / "predictions.safetensors").write_bytes(b"no tensors")
    else:
        bad = np.zeros((len(labels), 7)) if damage == "shape" else np.full((len(labels), 10), np.nan)
        planted.predictions(folder, labels, bad)
    result = read_study(tmp_path)
    assert set(result.predictions) == {"scratch/0", "scratch/1", "kd/1"}
    assert result.missing["kd/0"].startswith("kd/0: predictions.safetensors")


def test_a_card_of_kd_export_gives_the_latency(tmp_path: Path) -> None:
    planted.seeds(tmp_path, "scratch", [0.9])
    card = {"format": "onnx", "latency": {"processor": "a CPU", "threads": 2, "batch_1": {"median_ms": 1.25}}}
    (tmp_path / "scratch/0/export/onnx").mkdir(parents=True)
    (tmp_path / "scratch/0/export/onnx/card.json").write_text(json.dumps(card))
    table = tables.cost(read_study(tmp_path))
    assert table.rows[0][4] == "1.25"
    assert "onnx on a CPU, 2 threads" in table.notes[0]


# commands


def test_reproduction_commands_join_seeds_and_quote(tmp_path: Path) -> None:
    for seed in (0, 1):
        planted.scratch(tmp_path / f"scratch/{seed}", seed=seed)
        planted.typed(tmp_path / f"scratch/{seed}", "teacher=none", "objective=ce", f"seed={seed}", "task=a b")
    planted.plant(tmp_path / "kd/0")
    lines = dict(commands(read_study(tmp_path)))
    assert lines["scratch"] == ["kd-train -m teacher=none objective=ce 'task=a b' seed=0,1"]
    assert lines["kd"] == [
        f"kd-train --config-path {tmp_path / 'kd/0'} --config-name config hydra.run.dir=runs/again/kd/0"
    ]


def test_the_plan_of_a_comparison_gives_its_command_and_the_runs_not_begun(tmp_path: Path) -> None:
    cells = [("scratch", 0), ("kd", 0), ("scratch", 1), ("kd", 1)]
    plan = {"words": ["objective=[kd]", "seeds=2"], "cells": [{"label": name, "seed": seed} for name, seed in cells]}
    for name, seed in cells[:3]:
        make = planted.scratch if name == "scratch" else planted.plant
        folder = make(tmp_path / "s" / name / str(seed), seed=seed, cell={"role": "student", "label": name})
        planted.typed(folder, f"seed={seed}", f"cell={{seed:{seed}}}", f"objective={name}")
    (tmp_path / "s/plan.json").write_text(json.dumps(plan))
    result = read_study(tmp_path)
    assert [(run.name, run.why) for run in result.excluded] == [("s/kd/1", "planned by kd-compare, not started")]
    assert commands(result)[0] == ("the whole comparison", ["kd-compare 'objective=[kd]' seeds=2"])
    assert ("scratch", ["kd-train -m objective=scratch seed=0,1"]) in commands(result)


def kd_report(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["kd-report", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("KD_FULL_ERROR", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "0")
    kd.cli.report()


def test_command_prints_the_table_and_writes_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.seeds(tmp_path / "runs", "scratch", [0.90, 0.91])
    planted.seeds(tmp_path / "runs", "kd", [0.92, 0.94])
    monkeypatch.chdir(tmp_path)
    kd_report(monkeypatch, "runs=runs", "out=out")
    output = capsys.readouterr().out
    assert "93.00 ± 1.41" in output
    assert "kd: no difference beyond seed spread" in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "results.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "runs must be given"),
        (("runs=absent",), "runs=absent is not a folder"),
        (("runs=empty",), "runs=empty contains no run folder"),
        (("runs=failed",), "no run below runs=failed has finished: 0"),
        (("run=empty",), "unknown key run; did you mean runs?"),
    ],
)
def test_bad_input_gives_a_one_line_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    line: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (planted.plant(tmp_path / "failed/0") / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        kd_report(monkeypatch, *words)
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert errors.startswith(f"error: {line}")
    assert errors.count("\n") == 1
