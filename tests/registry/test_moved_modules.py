"""Module paths and names stored in files of earlier runs stay valid when modules move."""

from __future__ import annotations

import hydra.utils
import pytest
from paths import TESTS
from pytorch_lightning.callbacks import Callback

import kd.data.folder  # noqa: F401 (registers it)
from kd.callbacks.best import Best
from kd.callbacks.ema import EMA
from kd.callbacks.history import History
from kd.callbacks.nan_guard import NaNGuard
from kd.callbacks.teacher_gate import TeacherGate
from kd.cli import compose
from kd.cli.root import register
from kd.cli.sweep import SweepReport
from kd.errors import InputError
from kd.models.names import name_of
from kd.registry import build, losses, models, modules, optimisers, sources
from kd.registry.core import target_of
from kd.train import assemble
from kd.train.resume import changed

PATHS = (TESTS / "formats/dotted_paths.txt").read_text().split()

RENAMED = {
    "Bar": "ProgressBar",
    "Board": "TensorBoard",
    "Finite": "NaNGuard",
    "Momentum": "MomentumTeacher",
    "Moving": "MeanTeacher",
    "Reported": "SweepReport",
}


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


@pytest.mark.parametrize("path", PATHS)
def test_dotted_paths_in_old_run_folders_resolve(path: str) -> None:
    made = build({"_target_": path}, "here", partial=True)
    assert made.func.__name__ == RENAMED.get(name := path.rpartition(".")[2], name)


def test_path_list_covers_all_registered_classes() -> None:
    registered = {entry for registry in (losses, models, sources, modules, optimisers) for entry in registry.values()}
    known = {build({"_target_": path}, "here", partial=True).func for path in PATHS}
    missing = [target_of(entry) for entry in registered - known if entry.__module__.startswith("kd.")]
    assert not missing, "add them to tests/formats/dotted_paths.txt"


@pytest.mark.parametrize(
    ("callback", "key"),
    [
        (History(), "Record"),
        (TeacherGate(), "Gate"),
        (NaNGuard(), "Finite"),
        (EMA(), "EMA"),
        (
            Best(monitor="val/acc", mode="max"),
            "Best{'monitor': 'val/acc', 'mode': 'max', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
            "'train_time_interval': None}",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Callback) else "",
)
def test_callback_state_keys_do_not_change(callback: Callback, key: str) -> None:
    assert callback.state_key == key


def test_trained_teacher_cache_key_does_not_change() -> None:

    from kd.distill.identity import teacher_key
    from kd.train.teacher_recipe import recipe_of

    config = compose()
    assert teacher_key(recipe_of(config), assemble.data(config)) == "26914d9141f5acb5"


def test_a_path_of_an_earlier_version_is_the_same_loss() -> None:
    from kd.distill.identity import differing
    from kd.registry import current, target_of

    assert target_of(losses["ce"]) == "kd.losses.CE" == current("kd.losses.hard.CE")
    old, new = ({"objective": {"ce": {"_target_": path}}} for path in ("kd.losses.hard.CE", "kd.losses.CE"))
    assert not differing(old, new)


def test_function_takes_precedence_over_the_module_of_its_name() -> None:
    import kd.losses

    assert all(callable(getattr(kd.losses, name)) for name in ("at", "vid", "crd", "sp", "ofd"))


def test_registry_exports_the_names_of_earlier_versions() -> None:
    from kd.registry import named_by, parameters_of

    assert named_by is parameters_of


def test_a_run_is_resumed_with_its_options_under_earlier_paths() -> None:
    config = {
        "callbacks": {"average": {"_target_": "kd.callbacks.EMA", "decay": 0.9}},
        "objective": {"ce": {"_target_": "kd.losses.CE", "weight": 1.0}},
        "teacher": {"_target_": "kd.distill.MeanTeacher", "decay": 0.9},
    }
    typed = {
        "callbacks": {"average": {"_target_": "kd.averaging.EMA", "decay": 0.9}},
        "objective": {"ce": {"_target_": "kd.losses.hard.CE", "weight": 1.0}},
        "teacher._target_": "kd.moving.Moving",
    }
    assert changed(config, typed, "run") == config


def test_a_callback_under_its_earlier_path_cannot_be_added_to_a_run_that_has_begun() -> None:
    typed = {"callbacks": {"average": {"_target_": "kd.averaging.EMA", "decay": 0.9}}}
    with pytest.raises(InputError, match="cannot be added"):
        changed({"callbacks": {}}, typed, "run")


@pytest.mark.parametrize("path", ["kd.moving.Moving", "kd.distill.MeanTeacher", "kd.distill.mean_teacher.MeanTeacher"])
def test_a_renamed_teacher_keeps_its_name_in_summaries(path: str) -> None:
    # kd-report groups runs by it
    assert name_of({"_target_": path, "decay": 0.9}) == "Moving"


def test_hydra_finds_the_report_of_a_sweep_under_its_earlier_path() -> None:
    # Hydra makes hydra.callbacks itself, so that kd.registry.aliases does not apply
    assert hydra.utils.get_object("kd.sweep.Reported") is SweepReport
