"""Makes ``formats/2``: what the commands of kd leave behind, small, with what a later version has to make of it.

Run it once, by the version whose files are to be kept, in a folder that is made for it and removed in the end:

    python tests/formats/make.py /runs

Checkpoints hold the absolute path of their folder, so choose one that says nothing of the machine. It makes

- ``stopped``: a distilled run with an average of the weights, a learned temperature and an update left out, stopped in
  its last epoch, after its best; ``whole`` is the same run undisturbed;
- ``done``: a finished run with its ``teachers`` and their ``cache``, and ``evaluation``, what ``kd-evaluate`` says;
- ``compare``: a study of ``kd-compare``;
- ``words.json``: the words of the commands.

In float64, so that other machines come to the same numbers.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = HERE / "2"
SMALL = (
    *("data=digits", "data.test_share=0.05", "data.per_class=8", "data.batch_size=16", "optim.lr=0.2"),
    *("student=cnn", "student.width=4", "teacher=mlp", "teacher.width=12", "teacher.epochs=12", "epochs=4"),
    *("trainer.precision=64-true", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=2"),
    *("nan=skip", "logger=none"),
)
# a loss with a parameter of its own, and every callback that has a state
STATES = ("objective=ctkd", "callbacks=ema", "+callbacks.poison={_target_: saboteur.Poison, step: 3}")
STRIKE = "{_target_: saboteur.Saboteur, moment: step, epoch: 3, batch: 2, signum: 15, mark: mark}"
WORDS = {
    "done": (*SMALL, "objective=dkd"),
    "stopped": (*SMALL, *STATES),
    "compare": (*SMALL, "objective=[kd]", "seeds=1"),
}
LEFT_OUT = ("*.tmp", ".hydra", ".lock", "report", "report.*", "*.png")
KEEPS = ".ckpt"  # files that hold the folder's path
MOST, MOST_OF_ALL = 100_000, 400_000  # bytes


def ran(place: Path, command: str, *words: str, code: int = 0) -> None:
    """A command of kd in a folder, as a user's shell would run it."""
    known = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), "KD_FULL_ERROR": "1"}
    script = [sys.executable, str(ROOT / f"scripts/{command}.py"), *words]
    done = subprocess.run(script, cwd=place, env={**os.environ, **known}, text=True, capture_output=True)
    assert done.returncode == code, (words, done.stdout, done.stderr)


def make(place: Path) -> None:
    """Everything, in an empty folder."""
    ran(place, "train", *WORDS["done"], "hydra.run.dir=done")
    ran(place, "evaluate", "run=done", "out=evaluation")
    ran(place, "train", *WORDS["stopped"], "hydra.run.dir=whole")
    ran(place, "train", *WORDS["stopped"], f"+callbacks.saboteur={STRIKE}", "hydra.run.dir=stopped", code=143)
    ran(place, "compare", *WORDS["compare"])
    config = yaml.safe_load((place / "stopped/config.yaml").read_text())
    for key in ("poison", "saboteur"):  # which only this repository has
        del config["callbacks"][key]
    (place / "stopped/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def keep(place: Path) -> None:
    """Copies what is kept, without what names a machine or can be made again."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for name in ("done", "evaluation", "whole", "stopped", "runs/teachers", "runs/cache", "runs/compare"):
        shutil.copytree(place / name, TARGET / Path(name).name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in ("compare", "teachers"):
        for checkpoints in (TARGET / name).rglob("checkpoints"):
            shutil.rmtree(checkpoints)
    (TARGET / "whole/checkpoints/best.ckpt").unlink()
    (TARGET / "words.json").write_text(json.dumps(WORDS, indent=1) + "\n")


def said(path: Path) -> str:
    """What a file says in words."""
    if path.suffix == ".ckpt":
        return str(torch.load(path, weights_only=True))
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return str(file.metadata())
    return "" if path.suffix == ".bin" else path.read_text()


def check(place: Path) -> None:
    """Whether all is small, and silent about this machine."""
    files = [path for path in TARGET.rglob("*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    assert max(sizes.values()) < MOST, sizes
    assert sum(sizes.values()) < MOST_OF_ALL, sum(sizes.values())
    for path in files:
        for word in (
            str(ROOT),
            str(Path.home()),
            sys.prefix,
            "/tmp",
            "/home",
            *([] if KEEPS in path.name else [place]),
        ):
            assert str(word).encode() not in path.read_bytes(), (path, word)
        assert not re.search(rf"\b{re.escape(platform.node())}\b", f"{path.relative_to(TARGET)} {said(path)}"), path
    print(f"{len(files)} files, {sum(sizes.values()):,} bytes, the largest {max(sizes.values()):,}")


if __name__ == "__main__":
    chosen = Path(sys.argv[1])
    chosen.mkdir()
    try:
        make(chosen)
        keep(chosen)
    finally:
        shutil.rmtree(chosen)
    check(chosen)
