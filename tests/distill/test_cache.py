"""The cache of teacher answers: exact, keyed by everything it depends on, and verified."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import PYTHONPATH
from safetensors.torch import load_file
from torch import Tensor

import kd
from kd import Batch, Data, Frozen, InputError, Memory, Normalized
from kd.distill.answer_table import AnswerTable
from kd.distill.cached import Cached, CacheOptions, cached
from kd.losses.divergences import kl

KEY = {"teacher": "a" * 64, "data": "b" * 64, "augmentation": {"pad": 1, "flip": False}, "precision": "32-true"}


def table(folder: Path, **changed: Any) -> AnswerTable:
    given = {"samples": 6, "views": 4, "classes": 12, **changed}
    key = {**KEY, **given.pop("key", {})}
    return AnswerTable(folder / "table", key, **given)


@given(st.integers(0, 10**6), st.sampled_from(["float32", "float16", "bfloat16"]))
@settings(max_examples=15)
def test_table_round_trip(seed: int, dtype: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        kept = table(Path(folder), dtype=dtype)
        logits = 5 * torch.randn(24, 12, generator=torch.Generator().manual_seed(seed))
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(5):
            kept.write(rows, logits[rows])
        kept.flush()
        again = table(Path(folder), dtype=dtype)
        assert again.met.all()
        expected = logits.to({"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype])
        assert torch.equal(again.read(order), expected.float()[order])


def test_half_precision_moves_the_loss_by_less_than_a_thousandth(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = 4 * torch.randn(24, 12), 4 * torch.randn(24, 12)
    kept = table(tmp_path, dtype="float16")
    kept.write(torch.arange(24), teacher)
    exact, stored = (float(kl(student, z, 4.0)) for z in (teacher, kept.read(torch.arange(24))))
    assert stored == pytest.approx(exact, rel=1e-3)


def test_top_classes_preserve_probabilities_and_the_remaining_mass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(24, 12)
    kept = table(tmp_path, topk=3)
    kept.write(torch.arange(24), logits)
    p, q = logits.softmax(-1), kept.read(torch.arange(24)).softmax(-1)
    top = p.topk(3).indices
    torch.testing.assert_close(q.gather(1, top), p.gather(1, top))
    torch.testing.assert_close(q.sum(-1), torch.ones(24))
    rest = torch.ones_like(q).scatter(1, top, 0.0).bool()
    spread = q[rest].view(24, 9)
    torch.testing.assert_close(spread, spread[:, :1].expand(-1, 9))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "teacher": ({"key": {"teacher": "c" * 64}}, r"has another teacher: teacher is .* \"ccc"),
    "data": ({"key": {"data": "c" * 64}}, "has another data: data is"),
    "augmentation": ({"key": {"augmentation": {"pad": 2}}}, "has another augmentation: augmentation is"),
    "precision": (
        {"key": {"precision": "bf16-mixed"}},
        r"has another precision: precision is .* \"bf16-mixed\" in this run",
    ),
    "dtype": ({"dtype": "float16"}, r"has another dtype: dtype is \"float32\" in the cache, \"float16\" in this run"),
    "size": ({"samples": 7}, "has another samples: samples is 6 in the cache, 7 in this run"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_key_is_refused_by_name(what: str, tmp_path: Path) -> None:
    table(tmp_path)
    changed, said = CHANGES[what]
    with pytest.raises(InputError, match=said):
        table(tmp_path, **changed)


def damage_values(folder: Path) -> None:
    with (folder / "values.bin").open("r+b") as file:
        file.truncate(100)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (damage_values, r"values\.bin is truncated or missing: delete .* to rebuild it"),
    "gone": (lambda folder: (folder / "met.bin").unlink(), r"met\.bin is truncated or missing"),
    "key": (lambda folder: (folder / "key.json").write_text("{"), r"key\.json is damaged: delete"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_table_is_refused(what: str, tmp_path: Path) -> None:
    table(tmp_path)
    harm, said = DAMAGES[what]
    harm(tmp_path / "table")
    with pytest.raises(InputError, match=said):
        table(tmp_path)


def test_full_disk_is_reported_and_partial_table_removed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(InputError, match=r"cannot create the cache .*: File too large"):
            table(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    for options, said in (({"dtype": "float8"}, "did you mean 'float"), ({"topk": 12}, "between 0 and 11")):
        with pytest.raises(InputError, match=said):
            table(tmp_path, **options)
    with pytest.raises(InputError, match="max_gb must be above 0"):
        CacheOptions(max_gb=0)


def setting(tmp_path: Path, **store: Any) -> tuple[Frozen, Data, Cached]:
    """A small teacher and data with 9 views, and the teacher with a table."""
    torch.manual_seed(0)
    data = Data(Memory(kd.data["synthetic"](shape=[1, 8, 8], classes=4, train=40, test=8), batch_size=8, pad=1))
    frozen = Frozen(Normalized(kd.models["cnn"](classes=4, channels=1), data.mean, data.std))
    answer = cached(frozen, data, "auto", CacheOptions(root=str(tmp_path), **store), "cnn", "32-true")
    assert isinstance(answer, Cached)
    return frozen, data, answer


def batches(data: Data, seed: int, epoch: int) -> list[Batch]:
    loader = data.memory.loader("train", seed, lambda: epoch)
    return [data.memory.augment(batch, seed, epoch) for batch in loader]


def test_cached_rows_are_looked_up_and_missing_rows_computed(tmp_path: Path) -> None:
    frozen, data, teacher = setting(tmp_path)
    ran: list[int] = []
    frozen.network.register_forward_hook(lambda module, inputs, output: ran.append(len(inputs[0])))
    for seed in range(40):
        for batch in batches(data, seed, 0):
            torch.testing.assert_close(teacher(batch)[""], frozen(batch)[""])
    assert teacher.log_metrics()["cache_hits"] > 0.7
    assert teacher.table.met.float().mean() > 0.97
    batch = batches(data, 77, 3)[0]
    teacher(batch)  # the check of the epoch
    ran.clear()
    seen = teacher.table.met[(batch.index * 9 + batch.view)].all()
    teacher(batch)
    assert (not ran) == bool(seen)


def test_first_answers_equal_the_network_bit_for_bit(tmp_path: Path) -> None:
    frozen, data, teacher = setting(tmp_path)
    for batch in batches(data, 0, 0):
        assert torch.equal(teacher(batch)[""], frozen(batch)[""])
    for batch in batches(data, 0, 0):
        assert torch.equal(teacher(batch)[""], frozen(batch)[""])


def test_rows_of_another_teacher_are_detected(tmp_path: Path) -> None:
    _, data, teacher = setting(tmp_path)
    batch = batches(data, 0, 0)[0]
    teacher(batch)
    teacher.table.parts["values"].copy_(teacher.table.parts["values"].roll(1, 1))
    with pytest.raises(InputError, match="does not contain this teacher's logits"):
        teacher(batch)


def test_evaluation_and_tapped_layers_run_the_network(tmp_path: Path) -> None:
    frozen, data, teacher = setting(tmp_path)
    batch = next(iter(data.memory.loader("val")))
    assert torch.equal(teacher(batch)[""], frozen(batch)[""])
    assert not teacher.table.met.any()
    teacher.tap(["layer1"])
    assert "layer1" in teacher(batches(data, 0, 0)[0])
    assert not teacher.table.met.any()


def test_reason_for_not_caching_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frozen, data, _ = setting(tmp_path)
    caplog.set_level("INFO")
    arguments = ("cnn", "32-true")
    assert cached(frozen, data, "off", CacheOptions(), *arguments) is frozen
    assert cached(frozen, data, "auto", CacheOptions(max_gb=1e-6), *arguments) is frozen
    assert "more than cache.max_gb=1e-06" in caplog.text
    with pytest.raises(InputError, match=r"teacher\.cache=.*: it would take"):
        cached(frozen, data, str(tmp_path / "x"), CacheOptions(max_gb=1e-6), *arguments)
    assert cached(frozen, object(), "auto", CacheOptions(), *arguments) is frozen
    assert "cannot be enumerated (data.views=K" in caplog.text


FILL = """
import os, sys, torch, kd
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
import test_cache
test_cache.AnswerTable.FLUSH = float(sys.argv[4])
frozen, data, teacher = test_cache.setting(Path(sys.argv[2]))
print("ready", flush=True)
for seed in range(int(sys.argv[3]), int(sys.argv[3]) + 130):
    for batch in test_cache.batches(data, seed, 0):
        teacher(batch)
    if seed % 1000 < 3:
        print("epoch", flush=True)
teacher.on_epoch_end()
"""


def fill(folder: Path, seed: int, flush: float = 0.5) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILL, PYTHONPATH, str(folder), str(seed), str(flush)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def all_rows(frozen: Frozen, data: Data) -> Tensor:
    """The teacher's logits for every view of every image, in the table's order."""
    images = data.memory.parts["train"][0]
    index = torch.arange(len(images)).repeat_interleave(9)
    from kd.data.augment import crop_flip

    view = torch.arange(9).repeat(len(images))
    return frozen(Batch(crop_flip(images[index], view, 1, False), index))[""]


def test_killed_fill_has_a_consistent_table(tmp_path: Path) -> None:
    filling = fill(tmp_path, 0, flush=0.0)
    assert filling.stdout is not None
    for _ in range(3):
        filling.stdout.readline()
    filling.kill()
    filling.wait()
    frozen, data, teacher = setting(tmp_path)
    met = teacher.table.met
    assert met.sum() > 0
    torch.testing.assert_close(teacher.table.read(met.nonzero().flatten()), all_rows(frozen, data)[met])


@pytest.mark.slow
def test_two_processes_fill_one_table(tmp_path: Path) -> None:
    both = [fill(tmp_path, seed) for seed in (0, 1000)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    frozen, data, teacher = setting(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert teacher.table.met.all()
    torch.testing.assert_close(teacher.table.read(torch.arange(teacher.table.rows)), all_rows(frozen, data))


def losses(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars("train/loss")]


@pytest.mark.slow
def test_cached_run_equals_live_run(kd_train: Run, tmp_path: Path) -> None:
    given = ("teacher=cnn", "student=mlp", "student.width=16", "epochs=6", "trainer.enable_progress_bar=false")
    given += ("trainer.log_every_n_steps=1", "teacher.min_accuracy=0", "teacher.epochs=3")
    said = {}
    for name, more in {
        "live": ("teacher.cache=off",),
        "first": (),
        "second": (),
        "other": ("seed=1", "T=2", "alpha=0.5", "student.width=8"),
        "half": ("cache.dtype=float16",),
    }.items():
        done = kd_train(*given, *more, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "live"), rel=1e-5)
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    live, first, second = (load_file(tmp_path / name / "student.safetensors") for name in ("live", "first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert max(float((first[key].double() - live[key].double()).abs().max()) for key in live) < 1e-4
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "live"), rel=1e-3)
    assert "0.0 % filled" in said["first"]
    shares = [float(said[name].split(" % filled")[0].split()[-1]) for name in ("second", "other")]
    assert min(shares) > 45  # 6 epochs of 9 views
    assert len(list((tmp_path / "runs/cache").iterdir())) == 2


@pytest.mark.slow
def test_answers_of_a_wrong_teacher_are_worse_than_none(kd_train: Run, tmp_path: Path) -> None:
    quiet = ("student=cnn", "epochs=6", "trainer.enable_progress_bar=false")
    for name, more in {
        "right": ("teacher=resnet8",),
        "shuffled": ("teacher=resnet8", "teacher.shuffle=true"),
        "none": ("teacher=none", "objective=ce"),
    }.items():
        done = kd_train(*quiet, *more, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    right, shuffled, none = (
        json.loads((tmp_path / name / "summary.json").read_text())["metrics"]["test"]["acc"]
        for name in ("right", "shuffled", "none")
    )
    assert shuffled < none - 0.1
    assert shuffled < right - 0.1


def test_cache_of_another_teacher_is_refused(
    complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("teacher=cnn", "student=mlp", "epochs=1", "teacher.min_accuracy=0", "trainer.enable_progress_bar=false")
    AnswerTable(tmp_path / "mine", KEY, 1296, 9, 10)
    line = complain(*given, "hydra.run.dir=run", "teacher.cache=mine")
    assert line.startswith("error: the cache mine has another augmentation and data and pixels and teacher: ")
    assert not (tmp_path / "run/summary.json").exists()
