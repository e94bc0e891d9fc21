"""The identities of a trained teacher, a table of answers, a run and a study, for each key of the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import kd
from kd.cli import compose
from kd.distill.cached import CacheOptions, digest, key_of
from kd.distill.identity import MACHINE, RESUMABLE, STEP, answers_key, check_run, shaping, study_key, teacher_key
from kd.errors import InputError
from kd.train import assemble
from kd.train.teacher_recipe import recipe_of

Config = dict[str, Any]


@cache
def _composed(words: tuple[str, ...]) -> Config:
    return compose(*words)


def composed(*words: str) -> Config:
    return dict(_composed(words))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {prefix.rstrip("."): node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}


def changed(config: Config, key: str, value: Any) -> Config:
    first, _, rest = key.partition(".")
    return {**config, first: changed(config.get(first) or {}, rest, value) if rest else value}


def same_digits(test_share: float = 0.2) -> Any:
    return kd.data["digits"](test_share=test_share)


def answers_of(config: Config) -> str:
    """Where the table of the teacher's answers lies, for a teacher with always the same weights."""
    data = assemble.data(config)
    torch.manual_seed(0)
    frozen = assemble.teacher(config, data, weights=False)
    assert isinstance(frozen, kd.Frozen)
    with torch.no_grad():
        for parameter in frozen.network.parameters():
            parameter.zero_()
    precision = assemble.speed(config).cached_as(str(config["trainer"]["precision"]))
    store = CacheOptions(**config["cache"]).of(precision)
    return digest(key_of(frozen, data, precision, answers_key(config["teacher"])), store)


def teacher_of(config: Config) -> str:
    known = SimpleNamespace(describe=lambda: {"sha256": "x"})
    return teacher_key(recipe_of(config), known)


def identities(config: Config) -> dict[str, str]:
    """T: the trained teacher; A: the table of its answers; C: the run, as its checkpoints know it; S: the study."""
    run = repr(sorted(shaping(config, RESUMABLE).items()))
    return {"T": teacher_of(config), "A": answers_of(config), "C": run, "S": study_key(config, (), "x")}


# each key of kd-train's configuration, another value, and which of the four it is part of
KEYS: dict[str, tuple[Any, str]] = {
    "task": ("other", ""),
    "T": (3.6, "CS"),
    "alpha": (0.81, "CS"),
    "seed": (1, "C"),
    "epochs": (11, "TS"),
    "init_epochs": (31, "CS"),
    "teachers": ("other", ""),
    "cache.root": ("other", ""),
    "cache.dtype": ("float16", "ACS"),
    "cache.topk": (1, "ACS"),
    "cache.max_gb": (9, ""),
    "pair.dkd_beta": (9, "CS"),
    "pair.dkd_T": (5, "CS"),
    "pair.dkd_warmup": (21, "CS"),
    "pair.lskd_ce": (0.09, "CS"),
    "pair.lskd_weight": (10, "CS"),
    "pair.lskd_T": (3, "CS"),
    "pair.lskd_dkd_weight": (10, "CS"),
    "pair.lskd_dkd_beta": (9, "CS"),
    "pair.lskd_dkd_T": (3, "CS"),
    "pair.lskd_mlkd_weight": (10, "CS"),
    "pair.nkd_gamma": (3.15, "CS"),
    "pair.nkd_T": (4, "CS"),
    "pair.wsld_weight": (2.025, "CS"),
    "pair.wsld_T": (5, "CS"),
    "pair.ctkd_ce": (0.09, "CS"),
    "pair.ctkd_weight": (0.81, "CS"),
    "pair.ctkd_loops": (11, "CS"),
    "pair.dist_T": (5, "CS"),
    "pair.ttm_weight": (101, "CS"),
    "pair.ttm_gamma": (0.09, "CS"),
    "pair.wttm_weight": (4, "CS"),
    "pair.wttm_gamma": (0.09, "CS"),
    "pair.sdd_scales": ([2, 1], "CS"),
    "pair.reviewkd_weight": (6, "CS"),
    "pair.reviewkd_warmup": (21, "CS"),
    "pair.catkd_weight": (16, "CS"),
    "pair.catkd_resolution": (3, "CS"),
    "pair.catkd_normalise": (True, "CS"),
    "pair.ofd_weight": (0.0009, "CS"),
    "pair.mgd_weight": (0.00108, "CS"),
    "pair.ft_init_rate": (0.5, "CS"),
    "data._target_": ("test_identity.same_digits", "TCS"),
    "data.test_share": (0.18, "TACS"),
    "data.batch_size": (65, "TCS"),
    "data.eval_batch_size": (501, ""),
    "data.val": (0.2, "TACS"),
    "data.fraction": (0.9, "TACS"),
    "data.per_class": (50, "TACS"),
    "data.unlabelled": (True, "TACS"),
    "data.pad": (2, "TACS"),
    "data.border": ("edge", "TACS"),
    "data.flip": (True, "TACS"),
    "data.scale": ([0.5, 1.0], "TACS"),
    "data.jitter": (0.1, "TACS"),
    "data.transform": ("randomgrayscale", "TACS"),
    "data.erase": (0.1, "TACS"),
    "data.erase_area": ([0.1, 0.2], "TCS"),
    "data.cutout": (1, "TACS"),
    "data.mixup": (0.1, "TACS"),
    "data.cutmix": (0.1, "TACS"),
    "data.views": (1, "TACS"),
    "data.repeats": (2, "TCS"),
    "data.sampler": ("balanced", "TCS"),
    "data.drop_last": (False, "TCS"),
    "data.resident": (True, ""),
    "data.split_seed": (1, "TACS"),
    "student._target_": ("mine.other", "CS"),
    "student.width": (17, "CS"),
    "student.checkpoint": ("somewhere/x.pth", "S"),
    "student.mean": ([0.3], "CS"),
    "student.std": ([0.3], "CS"),
    "student.size": (7, "CS"),
    "student.head": ("new", "CS"),
    "student.freeze": ("backbone", "CS"),
    "student.checkpoint_key": ("ema", "CS"),
    "student.output": ("0", "CS"),
    "teacher._target_": ("kd.models.small.MLP", "TACS"),
    "teacher.width": (17, "TACS"),
    "teacher.checkpoint": ("somewhere/x.pth", "S"),
    "teacher.checkpoint_key": ("ema", "CS"),
    "teacher.output": (None, ""),
    "teacher.epochs": (3, "TCS"),
    "teacher.seed": (1, "TCS"),
    "teacher.data": ({"pad": 2}, "TCS"),
    "teacher.optim": ({"_target_": "kd.optim.sgd", "lr": 0.1}, "TCS"),
    "teacher.trainer": ({"max_steps": 5}, "TCS"),
    "teacher.train": (True, "CS"),
    "teacher.mean": ([0.3], "TACS"),
    "teacher.std": ([0.3], "TACS"),
    "teacher.size": (7, "TACS"),
    "teacher.classes": ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], "ACS"),
    "teacher.outputs": (10, "CS"),
    "teacher.min_accuracy": (0.5, ""),
    "teacher.cache": ("other", "CS"),
    "teacher.shuffle": (True, "CS"),
    "objective.ce._target_": ("mine.other", "C"),
    "objective.ce.label_smoothing": (0.1, "C"),
    "objective.ce.class_weights": ("balanced", "C"),
    "objective.ce.weight": (0.09, "C"),
    "objective.ce.student": ("other", "C"),
    "objective.ce.teacher": ("other", "C"),
    "objective.ce.warmup": (1, "C"),
    "objective.ce.start": (1, "C"),
    "objective.ce.stop": (5, "C"),
    "objective.kd._target_": ("mine.other", "C"),
    "objective.kd.T": (3.6, "C"),
    "objective.kd.reduction": ("other", "C"),
    "objective.kd.unit": ("other", "C"),
    "objective.kd.standardise": (True, "C"),
    "objective.kd.weight": (0.81, "C"),
    "objective.kd.student": ("other", "C"),
    "objective.kd.teacher": ("other", "C"),
    "objective.kd.warmup": (1, "C"),
    "objective.kd.start": (1, "C"),
    "objective.kd.stop": (5, "C"),
    "optim._target_": ("mine.other", "TCS"),
    "optim.lr": (0.045, "TCS"),
    "optim.momentum": (0.81, "TCS"),
    "optim.weight_decay": (0.00045, "TCS"),
    "optim.nesterov": (True, "TCS"),
    "optim.schedule": ("other", "TCS"),
    "optim.warmup": (0.09, "TCS"),
    "optim.milestones": ([0.875, 0.75, 0.625], "TCS"),
    "optim.gamma": (0.09, "TCS"),
    "optim.init": (0.1, "CS"),
    "optim.init_lr": (0.1, "CS"),
    "optim.decay_norm_bias": (False, "TCS"),
    "trainer._target_": ("mine.other", "TCS"),
    "trainer.max_epochs": (11, "S"),
    "trainer.accelerator": ("other", ""),
    "trainer.devices": (2, "TS"),
    "trainer.num_nodes": (2, "TS"),
    "trainer.strategy": ("other", ""),
    "trainer.precision": ("bf16-mixed", "TACS"),
    "trainer.accumulate_grad_batches": (2, "TCS"),
    "trainer.gradient_clip_val": (1.0, "TCS"),
    "trainer.check_val_every_n_epoch": (2, "CS"),
    "trainer.limit_train_batches": (7, "CS"),
    "trainer.limit_val_batches": (7, "CS"),
    "trainer.num_sanity_val_steps": (1, ""),
    "trainer.log_every_n_steps": (11, ""),
    "trainer.deterministic": (True, ""),
    "trainer.enable_progress_bar": (False, ""),
    "trainer.enable_model_summary": (True, ""),
    "speed.channels_last": (False, ""),
    "speed.fold": (False, ""),
    "speed.teacher_precision": ("bf16", "ACS"),
    "speed.min_agreement": (0.855, ""),
    "speed.compile": (True, ""),
    "speed.recompute": (True, ""),
    "logger.tensorboard._target_": ("mine.other", ""),
    "logger.tensorboard.name": ("other", ""),
    "logger.tensorboard.version": ("other", ""),
    "callbacks.best._target_": ("mine.other", "S"),
    "callbacks.best.filename": ("other", "S"),
    "callbacks.best.monitor": ("val/nll", "S"),
    "callbacks.best.mode": ("min", "S"),
    "callbacks.best.enable_version_counter": (True, "S"),
    "callbacks.last._target_": ("mine.other", "S"),
    "callbacks.last.minutes": (11, ""),
    "callbacks.last.steps": (5, ""),
    "callbacks.finite._target_": ("mine.other", "S"),
    "callbacks.finite.nan": ("other", "S"),
    "callbacks.finite.most": (11, "S"),
    "callbacks.lr._target_": ("mine.other", "S"),
    "callbacks.lr.logging_interval": ("other", ""),
    "callbacks.bar._target_": ("mine.other", "S"),
    "callbacks.charts._target_": ("mine.other", "S"),
    "callbacks.throughput._target_": ("mine.other", "S"),
    "callbacks.pictures._target_": ("mine.other", "S"),
    "callbacks.pictures.images": (33, ""),
    "callbacks.batch_statistics._target_": ("mine.other", "S"),
    "callbacks.at_chance._target_": ("mine.other", "S"),
    "cell": ("new", ""),
    "nan": ("skip", "TS"),
    "resume": ("new", ""),
    "resume_data": ("changed", ""),
    "trust": (True, ""),
}
# what a key needs beside it
BESIDE = {"teacher.classes": {"teacher.outputs": 10}, "data.unlabelled": {"data.fraction": 0.5}}


@cache
def base_of(key: str) -> tuple[Config, dict[str, str]]:
    config = composed("teacher=cnn")
    for beside, value in BESIDE.get(key, {}).items():
        config = changed(config, beside, value)
    return config, identities(config)


def test_expectations_cover_every_configuration_key() -> None:
    assert set(flat(composed("teacher=cnn"))) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_the_identities_that_it_shapes_and_no_other(key: str) -> None:
    value, expected = KEYS[key]
    config, before = base_of(key if key in BESIDE else "")
    after = identities(changed(config, key, value))
    assert "".join(kind for kind in "TACS" if before[kind] != after[kind]) == expected


# arguments of Lightning's trainer that are no keys of kd's own configuration: another value, T and C of the above
ARGUMENTS: dict[str, tuple[Any, str]] = {
    "fast_dev_run": (True, "C"),
    "min_epochs": (5, "C"),
    "max_steps": (5, ""),  # a run may be resumed for longer
    "min_steps": (5, "C"),
    "max_time": ("00:00:01:00", ""),
    "limit_test_batches": (2, "C"),
    "limit_predict_batches": (2, ""),
    "overfit_batches": (2, "C"),
    "val_check_interval": (0.5, "C"),
    "enable_checkpointing": (False, "C"),
    "gradient_clip_algorithm": ("value", "TC"),
    "benchmark": (True, ""),
    "inference_mode": (False, ""),
    "use_distributed_sampler": (False, "TC"),
    "profiler": ("simple", ""),
    "detect_anomaly": (True, ""),
    "barebones": (True, "C"),
    "plugins": ("x", "TC"),
    "sync_batchnorm": (True, "TC"),
    "reload_dataloaders_every_n_epochs": (1, "TC"),
    "enable_autolog_hparams": (True, ""),
    "model_registry": ("x", ""),
    "logger": (False, ""),
    "callbacks": ("x", "C"),
    "default_root_dir": ("x", ""),
}


def test_expectations_cover_every_trainer_argument() -> None:
    own = {key.removeprefix("trainer.") for key in KEYS if key.startswith("trainer.")} - {"_target_"}
    assert set(inspect.signature(pl.Trainer).parameters) == own | set(ARGUMENTS)
    assert not set(STEP) & set(MACHINE)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_trainer_argument_changes_what_it_shapes(name: str) -> None:
    config = composed("teacher=cnn")
    value, expected = ARGUMENTS[name]
    other = changed(config, f"trainer.{name}", value)
    kinds = {"T": teacher_of(config) != teacher_of(other)}
    kinds["C"] = shaping(config, RESUMABLE) != shaping(other, RESUMABLE)
    assert "".join(kind for kind, differs in kinds.items() if differs) == expected


FOLDER: dict[str, tuple[Any, bool]] = {
    **{f"data.{key}": ("x", False) for key in ("root", "workers", "download", "eval_batch_size", "resident")},
    **{f"data.{key}": ("x", True) for key in ("size", "batch_size", "val", "fraction", "per_class", "crop", "scale")},
    **{f"data.{key}": ("x", True) for key in ("flip", "transform", "views", "mean", "std", "split_seed")},
}


@pytest.mark.parametrize("key", FOLDER)
def test_teacher_identity_depends_on_data_content_and_not_its_path(key: str) -> None:
    config = composed("teacher=cnn", "data=folder", "data.root=y")
    value, shapes = FOLDER[key]
    assert (teacher_of(config) != teacher_of(changed(config, key, value))) == shapes


def test_changed_data_changes_the_teacher_identity() -> None:
    recipe = recipe_of(composed("teacher=cnn"))
    one, other = (teacher_key(recipe, SimpleNamespace(describe=lambda s=s: {"sha256": s})) for s in "xy")
    assert one != other


def test_custom_data_without_a_digest_is_identified_by_its_configuration() -> None:
    data = SimpleNamespace(classes=3, shape=(1, 8, 8))
    recipes = [recipe_of({**composed("teacher=cnn"), "data": {"_target_": "mine.Data", "root": root}}) for root in "xy"]
    assert teacher_key(recipes[0], data) != teacher_key(recipes[1], data)


@pytest.mark.parametrize(
    "callback",
    [
        {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/acc"},
        {"_target_": "pytorch_lightning.callbacks.StochasticWeightAveraging", "swa_lrs": 0.01},
        {"_target_": "kd.callbacks.EMA", "decay": 0.999},
        {"_target_": "kd.callbacks.BatchSize"},
        None,
    ],
    ids=["early-stopping", "weight-averaging", "moving-average", "batch-size-search", "no-callback"],
)
def test_student_callbacks_do_not_affect_teacher_training(callback: Any) -> None:
    config = composed("teacher=cnn")
    for key in ("x", "best", "finite"):
        other = changed(config, f"callbacks.{key}", callback)
        assert recipe_of(other)["callbacks"] == recipe_of(config)["callbacks"]
        assert teacher_of(other) == teacher_of(config)


def test_disabled_observers_are_disabled_for_the_teacher_too() -> None:
    config = changed(composed("teacher=cnn"), "callbacks.pictures", None)
    assert recipe_of(config)["callbacks"]["pictures"] is None
    assert recipe_of(config)["callbacks"]["best"]["monitor"] == "val/acc"


def test_precision_by_its_short_name_and_devices_by_their_numbers_are_the_same() -> None:
    config = composed("teacher=cnn")
    assert teacher_of(changed(config, "trainer.precision", 32)) == teacher_of(config)
    assert teacher_of(changed(config, "trainer.devices", [3])) == teacher_of(config)
    assert teacher_of(changed(config, "trainer.devices", [0, 1])) == teacher_of(changed(config, "trainer.devices", 2))


def test_ensemble_member_has_the_identity_of_a_single_teacher() -> None:
    config = composed("teacher=cnn")
    member = composed("teacher=ensemble", "+teacher@teacher.members.a=cnn", "+teacher@teacher.members.b=mlp")
    assert teacher_of({**member, "teacher": member["teacher"]["members"]["a"]}) == teacher_of(config)


def test_the_objective_of_the_student_does_not_change_its_teacher() -> None:
    config = composed("teacher=cnn")
    other = composed("teacher=cnn", "objective=ab", "epochs=10", "init_epochs=3", "optim.init=0.3", "T=2", "alpha=0.5")
    assert teacher_of(other) == teacher_of(config)


def test_a_checkpoint_of_another_run_is_refused_by_the_keys_that_differ() -> None:
    config = composed("teacher=cnn")
    other = changed(changed(config, "T", 2.0), "optim.lr", 0.1)
    with pytest.raises(InputError, match=r"x is from another run: .* with T=2\.0 \(now 4\.0\), optim\.lr=0\.1"):
        check_run(config, other, "x")
    check_run(config, changed(changed(config, "epochs", 99), "trainer.devices", 4), "x")
    with pytest.raises(InputError, match="does not contain the configuration of its run"):
        check_run(config, None, "x")
