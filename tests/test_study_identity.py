"""The identity of a study, and which runs it reuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from trained import trained

from kd.cli import compose
from kd.compare.plan import check_same, prepare
from kd.errors import InputError

SMALL = (
    *("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=120", "data.test=40"),
    *("data.batch_size=16", "student=cnn", "epochs=1", "trainer.enable_progress_bar=false", "logger=none"),
)
TAUGHT = (*SMALL, "teacher=mlp", "teacher.min_accuracy=0", "objective=kd")


def name_of(*words: str) -> str:
    return prepare({"kd": compose(*TAUGHT, "teacher.epochs=0", *words)}, words).name


def test_study_name_depends_only_on_what_affects_its_runs() -> None:
    name = name_of()
    for word in (
        *(
            "speed.channels_last=false",
            "data.eval_batch_size=7",
            "data.resident=true",
            "callbacks.pictures=null",
            "seed=3",
        ),
        *("trainer.num_sanity_val_steps=1", "trainer.deterministic=true", "teachers=elsewhere", "cache.root=elsewhere"),
    ):
        assert name_of(word) == name, word
    for word in (
        *("T=2", "alpha=0.5", "epochs=2", "optim.lr=0.1", "data.batch_size=8", "student.width=8", "cache.topk=2"),
        *("+callbacks.ema={_target_: kd.callbacks.EMA}", "callbacks.best.monitor=val/nll", "pair.dkd_T=2"),
        *("objective.kd.T=9", "trainer.accumulate_grad_batches=2"),
    ):
        assert name_of(word) != name, word


def test_other_content_under_the_same_path_is_another_study(tmp_path: Path) -> None:
    runs = [trained(tmp_path / seed, *SMALL, "teacher=none", "objective=ce", f"seed={seed}") for seed in "01"]
    begun, names = tmp_path / "begun", []
    for run in (runs[0], runs[1], runs[0]):
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(run, begun)
        names.append(name_of(f"student.checkpoint={begun}"))
        names.append(name_of("teacher=cnn", f"teacher.checkpoint={begun}", "teacher.epochs=1"))
    assert names[:2] == names[4:]
    assert names[0] != names[2]
    assert names[1] != names[3]


def test_cell_of_another_configuration_is_not_reused(tmp_path: Path) -> None:
    source = trained(tmp_path / "source", *SMALL, "teacher=none", "objective=ce", "seed=1")
    words = (*SMALL, "objective=kd", "teacher=cnn", f"teacher.checkpoint={source}", "teacher.min_accuracy=0")
    run = trained(tmp_path / "study", *words)
    for word in ("seed=4", "data.eval_batch_size=9", "callbacks.bar=null", "speed.fold=false"):
        check_same(compose(*words, word), run)
    for word, message in (
        ("T=2", "T=4.0, not 2.0"),
        ("callbacks.best.mode=min", "callbacks.best.mode=max, not min"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=1, not 2"),
        ("+callbacks.ema={_target_: kd.callbacks.EMA}", "callbacks.ema._target_=None"),
    ):
        with pytest.raises(InputError, match=f"contains a run with .*{message}"):
            check_same(compose(*words, word), run)


def test_a_teachers_weights_replaced_between_cells_of_a_study_are_refused(tmp_path: Path) -> None:
    sources = [trained(tmp_path / seed, *SMALL, "teacher=none", "objective=ce", f"seed={seed}") for seed in "01"]
    teacher = Path(shutil.copytree(sources[0], tmp_path / "teacher"))
    words = (*SMALL, "objective=kd", "teacher=cnn", f"teacher.checkpoint={teacher}", "teacher.min_accuracy=0")
    run = trained(tmp_path / "study", *words)
    check_same(compose(*words), run)
    shutil.rmtree(teacher)
    shutil.copytree(sources[1], teacher)
    with pytest.raises(InputError, match=r"other weights in teacher\.checkpoint"):
        check_same(compose(*words), run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["about"]["files"]  # as a run of before had it
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    check_same(compose(*words), run)


def test_cell_trained_on_changed_data_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path, *SMALL, "teacher=none", "objective=ce")
    config = compose(*SMALL, "teacher=none", "objective=ce")
    check_same(config, run, json.loads((run / "summary.json").read_text())["data"]["sha256"])
    check_same(config, run)
    with pytest.raises(InputError, match="contains a run on other data"):
        check_same(config, run, "0" * 64)
