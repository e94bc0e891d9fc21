"""A loss of the user: README's example, a term's keys on any node, and the errors."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import Complain, Run
from paths import ROOT

README = ROOT / "README.md"
QUICK = ("logger=none", "trainer.enable_progress_bar=false", "teacher.min_accuracy=0", "epochs=1")
LOSS = """
import torch
class Distance(torch.nn.Module):
    def forward(self, student, teacher):
        return (student - teacher).square().mean()
"""


def snippets() -> list[tuple[str, str]]:
    """README's blocks of code (language, text) from the section on a loss of one's own up to the model's."""
    text = README.read_text()
    section = text[text.index("A **loss** is any module") : text.index("A **model** is any function")]
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


def own(folder: Path, node: str = "_target_: mine.Distance\nweight: 0.1\n") -> None:
    (folder / "mine.py").write_text(LOSS)
    (folder / "conf/loss").mkdir(parents=True)
    (folder / "conf/loss/distance.yaml").write_text(node)


def test_custom_loss_example_of_the_readme_runs(kd_train: Run, tmp_path: Path) -> None:
    commands = []
    for language, text in snippets():
        if language == "bash":
            commands += [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("kd-train ")]
            continue
        path = tmp_path / text.partition("\n")[0].lstrip("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(commands) == 1
    words = shlex.split(commands[0])[1:]
    done = kd_train(*words, *QUICK, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    terms = json.loads((tmp_path / "run/summary.json").read_text())["objective"]["terms"]
    assert terms[0] == "total = 0.1 * ce + 0.9 * kd + 0.1 * distance"
    assert any(line.startswith("distance = Distance(): ") and "student=fc:in" in line for line in terms), terms


def test_term_keys_on_a_custom_loss_node(kd_train: Run, tmp_path: Path) -> None:
    own(tmp_path, "_target_: mine.Distance\n")
    keys = {"weight": 0.5, "student": "fc:in", "teacher": "fc:in", "warmup": 2, "start": 0, "stop": 3}
    words = [f"objective.distance.{key}={value}" for key, value in keys.items()]
    both = ("student=resnet8", "teacher=resnet8", "hydra.run.dir=run")
    done = kd_train("--config-dir", "conf", "+loss@objective.distance=distance", *words, *both, *QUICK)
    assert done.returncode == 0, done.stderr
    node = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["objective"]["distance"]
    assert node == {"_target_": "mine.Distance", **keys}


def test_term_keys_on_a_custom_objective(kd_train: Run, tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "conf/objective").mkdir()
    (tmp_path / "conf/objective/near.yaml").write_text(
        "defaults:\n  - /loss@ce: ce\n  - /loss@distance: distance\n  - _self_\nother: {_target_: mine.Distance}\n"
    )
    words = ("objective=near", "objective.other.stop=1", "objective.distance.weight=2", "student=resnet8")
    done = kd_train("--config-dir", "conf", *words, "teacher=resnet8", *QUICK, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    node = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["objective"]
    assert node["other"] == {"_target_": "mine.Distance", "stop": 1}
    assert node["distance"]["weight"] == 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("objective.kdd.weight=1", "unknown key 'objective.kdd'; did you mean 'objective.kd'?"),
        ("objective.kd.weigth=1", "unknown key objective.kd.weigth; did you mean objective.kd.weight?"),
        ("objective.kd.weight=much", "objective.kd.weight=much: Value 'much' of type 'str'"),
        ("objective.kd.student=5", "objective.kd: student must be the name of a layer or a list of names, got 5"),
        ("objective.kd.teacher=[fc,1]", "objective.kd: teacher must be the name of a layer or a list of names"),
        ("objective.kd.weight=inf", "objective.kd: weight must be finite, got inf"),
        ("objective.kd.start=-1", "objective.kd: start and warmup must be at least 0"),
    ],
)
def test_wrong_term_key_or_value_gives_a_one_line_error(word: str, said: str, complain: Complain) -> None:
    assert said in complain(word, "logger=none")


def test_mismatched_layer_shapes_error_names_term_layers_and_shapes(complain: Complain, tmp_path: Path) -> None:
    own(tmp_path)
    words = ("+loss@objective.distance=distance", "objective.distance.student=fc:in", "logger=none")
    said = complain("--config-dir", "conf", *words, "student=resnet8", "teacher=resnet8")
    assert said.startswith("error: objective.distance: Distance fails on student=fc:in [B, 64] and teacher=output")
    assert "teacher=output [B, 10]: The size of tensor a (64)" in said
    assert not (tmp_path / "runs/teachers").exists(), "before the teacher is trained"


def test_failed_build_gives_a_one_line_error(complain: Complain, tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "mine.py").write_text(
        LOSS + "    def build(self, student, teacher):\n        torch.cat([student, teacher], 0)\n"
    )
    words = ("+loss@objective.distance=distance", "objective.distance.student=fc:in", "logger=none")
    said = complain("--config-dir", "conf", *words, "student=resnet8", "teacher=resnet8")
    assert said.startswith("error: objective.distance: Distance fails on student=fc:in [B, 64] and teacher=output")
