"""Which parameters are decayed, with every optimiser, and what runs report about it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Complain, Run
from torch import nn

import kd
from kd import InputError, Optim
from kd.optim import DOT, adamw, parameter_groups, sgd, undecayed


class Parts(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.norm, self.group = nn.LayerNorm([4, 2, 2]), nn.GroupNorm(2, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(1, 5, 4))
        self.position_embeddings, self.words = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.temperature, self.table = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(3, 4))
        self.tokenizer = nn.Linear(4, 4)


WEIGHTS = {"conv.weight", "fc.weight", "words.weight", "tokenizer.weight", "table"}


def test_biases_norms_tokens_positions_and_temperatures_are_not_decayed() -> None:
    names = {name for name, _ in Parts().named_parameters()}
    assert names - undecayed(Parts()) == WEIGHTS


def test_no_decay_list_of_timm_is_respected() -> None:
    import timm

    class Stated(Parts):
        def no_weight_decay(self) -> set[str]:
            return {"table"}

    assert undecayed(nn.ModuleDict({"student": Stated()})) >= {"student.table"}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    assert {"pos_embed", "cls_token", "blocks.0.norm1.weight", "blocks.0.mlp.fc1.bias"} <= undecayed(network)
    assert "blocks.0.attn.qkv.weight" not in undecayed(network)


def test_our_own_transformers_tokens_and_positions_are_not_decayed() -> None:
    network = kd.models["deit_tiny"](classes=3, shape=(3, 32, 32))
    assert {"cls_token", "dist_token", "pos_embed"} <= undecayed(network)
    assert not {name for name, p in network.named_parameters() if p.ndim > 1} & undecayed(network) - {
        "cls_token",
        "dist_token",
        "pos_embed",
    }


OPTIMISERS = [
    partial(sgd, lr=0.1, weight_decay=0.1),
    partial(adamw, lr=0.1, weight_decay=0.1),
    partial(DOT, lr=0.1, weight_decay=0.1),
    partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1),
]


@pytest.mark.parametrize("make", OPTIMISERS, ids=["sgd", "adamw", "dot", "own"])
@pytest.mark.parametrize("everything", [True, False])
def test_a_step_without_a_gradient_shrinks_what_is_decayed_and_nothing_else(make: Any, everything: bool) -> None:
    module = Parts()
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = Optim(make, decay_norm_bias=everything).configure(module, 10)["optimizer"]
    optimizer.step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert moved == ({name for name, _ in module.named_parameters()} if everything else WEIGHTS)


def test_every_trained_parameter_is_in_one_group() -> None:
    module = Parts()
    module.fc.requires_grad_(False)
    groups = parameter_groups(module, False)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert len(parameter_groups(module, True)) == 1
    assert list(parameter_groups(module, True)[0]["params"]) == [p for p in module.parameters() if p.requires_grad]


def test_decay_can_be_disabled_and_unknown_values_are_refused() -> None:
    groups = parameter_groups(nn.BatchNorm1d(2), False)
    assert [group["weight_decay"] for group in groups] == [0.0]
    with pytest.raises(InputError, match="decay_norm_bias must be true or false"):
        Optim(sgd, decay_norm_bias="no")  # type: ignore[arg-type]


QUICK = [
    "data=synthetic",
    "data.shape=[1,8,8]",
    "data.classes=3",
    "data.train=96",
    "data.test=30",
    "data.batch_size=16",
]
QUICK += ["student=vit_tiny", "student.patch=4", "teacher=none", "objective=ce", "epochs=1", "logger=none"]
QUICK += ["trainer.enable_progress_bar=false"]


@pytest.mark.parametrize(("words", "value"), [("optim=adamw", False), ("optim=sgd", True), ("optim=dot", True)])
def test_default_is_that_of_published_recipes_and_is_reported(
    words: str, value: bool, kd_train: Run, tmp_path: Path
) -> None:
    done = kd_train(*QUICK, words, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["optim"]["decay_norm_bias"] is value
    line = next(line for line in done.stdout.splitlines() if line.startswith("optim: "))
    assert line.endswith(f"(decay_norm_bias={str(value).lower()})")
    assert bool(re.search(r"no weight decay on \d+ biases", line)) == (not value)


def test_custom_optimiser_accepts_the_key(kd_train: Run, tmp_path: Path) -> None:
    own = "optim={_target_: torch.optim.Adagrad, weight_decay: 0.1, decay_norm_bias: false}"
    (tmp_path / "conf/optim").mkdir(parents=True)
    (tmp_path / "conf/optim/mine.yaml").write_text(yaml.safe_dump(yaml.safe_load(own.partition("=")[2])))
    done = kd_train("--config-dir", "conf", *QUICK, "optim=mine", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "(decay_norm_bias=false)" in done.stdout


def test_a_configuration_without_the_key_decays_everything_as_before() -> None:
    from kd.train import assemble

    old = assemble.optim({"_target_": "kd.optim.adamw", "lr": 0.1, "weight_decay": 0.1})
    assert old.decay_norm_bias
    groups = old.configure(Parts(), 10)["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1]


def test_non_boolean_value_is_refused(complain: Complain) -> None:
    assert "optim.decay_norm_bias=maybe" in complain("optim.decay_norm_bias=maybe")
