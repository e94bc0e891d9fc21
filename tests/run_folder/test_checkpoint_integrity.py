"""Checkpoints of another run, edited or damaged ones, and edited configurations are detected."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_runs import launched
from conftest import Complain
from paths import TESTS
from safetensors.torch import load_file
from small_runs import trained

from kd.callbacks.checkpoint import AtomicCheckpointIO
from kd.errors import InputError
from kd.run_folder.checkpoints import latest
from kd.run_folder.integrity import Damaged, read, sealed

SMALL = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=140", "data.test=60")
TAUGHT = (*SMALL, "data.batch_size=16", "teacher=none", "objective=ce", "epochs=1")


def flipped(path: Path) -> None:
    """Flips one bit of the largest tensor, which torch reads without a word."""
    with zipfile.ZipFile(path) as file:
        part = max((part for part in file.infolist() if "/data/" in part.filename), key=lambda part: part.file_size)
        tensor = file.read(part)
    content = path.read_bytes()
    at = content.index(tensor) + len(tensor) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])


def test_flipped_bit_falls_back_to_the_previous_checkpoint(copy: Path) -> None:
    folder = copy / "run/checkpoints"
    shutil.copy(folder / "last.ckpt", folder / "previous.ckpt")
    flipped(folder / "last.ckpt")
    torch.load(folder / "last.ckpt", weights_only=True)
    found = latest(copy / "run")
    assert found is not None
    assert found.path.name == "previous.ckpt"
    on = launched(copy, "resume=run")
    assert on.returncode == 0, on.stderr
    assert "last.ckpt is damaged" in on.stdout
    whole = load_file(copy / "done/student.safetensors")
    assert all(torch.equal(value, whole[key]) for key, value in load_file(copy / "run/student.safetensors").items())


@pytest.mark.parametrize("name", ["last", "best"])
def test_flipped_bit_without_another_checkpoint_is_refused(copy: Path, complain: Complain, name: str) -> None:
    flipped(copy / f"run/checkpoints/{name}.ckpt")
    (copy / "run/checkpoints/previous.ckpt").unlink(missing_ok=True)
    assert f"{name}.ckpt is damaged" in complain("resume=run")
    assert not Path("run/summary.json").exists()


def test_edited_numbers_are_detected(tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.ones(3)}, "lr_schedulers": [{"last_epoch": 3}], "kd": {"format_version": 1}}
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, path)
    assert torch.equal(read(path)["state_dict"]["a"], torch.ones(3))
    for edit in (
        lambda c: c["state_dict"]["a"].mul_(1.001),
        lambda c: c["lr_schedulers"][0].update(last_epoch=4),
        lambda c: c["state_dict"].update(b=torch.zeros(1)),
    ):
        edited = torch.load(path, weights_only=True)
        edit(edited)
        torch.save(edited, tmp_path / "y.ckpt")
        with pytest.raises(Damaged, match="the sha256 of its content differs from the recorded one"):
            read(tmp_path / "y.ckpt")


def test_digest_depends_on_type_and_shape() -> None:
    def digest(value: Any) -> Any:
        return sealed({"state_dict": value, "kd": {}})["kd"]["sha256"]

    values = [torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.zeros(1, 2), torch.zeros(2).bfloat16(), 0, 0.0]
    values += [[], {}, None, [torch.zeros(2)], {"a": 0}, {"a": 0.5}, [[0]], [0, 0], "0", torch.tensor(0.0), True]
    assert len({digest(value) for value in values}) == len(values)
    pixels = torch.rand(2, 3, 4, 4)
    assert digest(pixels) == digest(pixels.to(memory_format=torch.channels_last))


OTHERS = {"T": "T=2", "alpha": "alpha=0.5", "seed": "seed=1", "optim.lr": "optim.lr=0.1"}


@pytest.mark.parametrize("key", OTHERS)
def test_a_checkpoint_copied_from_a_run_that_differs_is_refused(copy: Path, complain: Complain, key: str) -> None:
    other = launched(copy, OTHERS[key], "hydra.run.dir=other")
    assert other.returncode == 0, other.stderr
    for name in ("best", "last"):
        run = Path(shutil.copytree(copy / "run", f"{name}-{key}"))
        shutil.copy(copy / f"other/checkpoints/{name}.ckpt", run / "checkpoints")
        line = complain(f"resume={run}")
        assert f"{name}.ckpt is from another run: it was trained with {key}=" in line
        assert not (run / "summary.json").exists()


def test_configuration_edited_after_its_checkpoint_is_refused(copy: Path, complain: Complain) -> None:
    run = Path(shutil.copytree(copy / "run", "edited"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in (("T", 2.0), ("alpha", 0.3), ("seed", 5)):
        (run / "config.yaml").write_text(yaml.safe_dump({**config, key: value}))
        assert f"was trained with {key}={config[key]} (now {value})" in complain(f"resume={run}")
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "optim": {**config["optim"], "momentum": 0.1}}))
    assert "optim.momentum=0.9 (now 0.1)" in complain(f"resume={run}")


def test_best_checkpoint_replaced_during_training_is_not_tested(tmp_path: Path) -> None:
    run = trained(tmp_path, *TAUGHT, "student=cnn")
    config = yaml.safe_load((run / "config.yaml").read_text())
    files = AtomicCheckpointIO({**config, "T": 9.0})
    with pytest.raises(InputError, match=r"best\.ckpt is from another run: it was trained with T=4\.0 \(now 9\.0\)"):
        files.load_checkpoint(run / "checkpoints/best.ckpt")
    AtomicCheckpointIO(config).load_checkpoint(run / "checkpoints/best.ckpt")


def test_resume_with_other_initial_weights_is_refused(tmp_path: Path) -> None:
    sources = [trained(tmp_path / name, *TAUGHT, "student=cnn", f"seed={name}") for name in "01"]
    begun = tmp_path / "begun"
    shutil.copytree(sources[0], begun)
    run = trained(tmp_path / "run", *TAUGHT, "student=cnn", f"student.checkpoint={begun}")
    config = yaml.safe_load((run / "config.yaml").read_text())
    AtomicCheckpointIO(config).load_checkpoint(run / "checkpoints/last.ckpt")
    shutil.rmtree(begun)
    shutil.copytree(sources[1], begun)
    with pytest.raises(InputError, match=r"a run whose initial weights differ from those in student\.checkpoint now"):
        AtomicCheckpointIO(config).load_checkpoint(run / "checkpoints/last.ckpt")


def test_checkpoints_of_the_first_format_are_read_without_a_digest() -> None:
    path = TESTS / "formats/1/stopped/checkpoints/last.ckpt"
    assert "sha256" not in read(path)["kd"]
