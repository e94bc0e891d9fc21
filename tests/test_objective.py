"""Terms and objectives: the inputs of a loss, their sources, and how the parts are summed."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kd
from kd import Objective, Term
from kd.errors import InputError
from kd.losses import CE, KL, MEMBERS, DeiTHard


class Hint(nn.Module):
    """mean (regressor(student) - teacher)^2."""

    def build(self, student: Tensor, teacher: Tensor) -> None:
        self.regressor = nn.Linear(student.shape[1], teacher.shape[1])

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (self.regressor(student) - teacher).square().mean()


class Asks(nn.Module):
    def forward(self, student: Tensor, tacher: Tensor) -> Tensor:
        return student.sum()


def tapped(width: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(width)
    return {"": torch.randn(4, 3, generator=generator), "layer": torch.randn(4, width, generator=generator)}


LABELS = torch.tensor([0, 1, 2, 0])


def test_the_total_is_the_weighted_sum_of_unweighted_parts() -> None:
    objective = Objective({"ce": Term(CE(), 0.1), "kd": Term(KL(T=2), 0.9)})
    student, teacher = tapped(), tapped(6)
    total, parts = objective(student, LABELS, teacher)
    torch.testing.assert_close(parts["ce"], CE()(student[""], LABELS))
    torch.testing.assert_close(parts["kd"], KL(T=2)(student[""], teacher[""]))
    torch.testing.assert_close(total, 0.1 * parts["ce"] + 0.9 * parts["kd"])


def test_unknown_term_input_error_lists_valid_inputs() -> None:
    with pytest.raises(InputError, match=r"'tacher'.*student, teacher, labels, index"):
        Term(Asks())


@pytest.mark.parametrize(
    ("name", "near"),
    [("on_epochs", "on_epoch"), ("atach", "attach"), ("attach_Data", "attach_data"), ("predicts", "predict")],
)
def test_a_method_that_is_nearly_an_optional_member_is_refused(name: str, near: str) -> None:
    loss = type("Slip", (DeiTHard,), {name: lambda self, *facts: None})()
    with pytest.raises(InputError, match=rf"^Slip\.{name} is never called; did you mean '{near}'\?$"):
        Term(loss)


def test_a_helper_beside_the_optional_member_itself_is_no_slip() -> None:
    both = {"on_epoch": lambda self, epoch: None, "on_epochs": lambda self, epochs: None}
    Term(type("Both", (CE,), both)())


@pytest.mark.parametrize("name", ["rebuild", "attached", "predictor", "on_epoch_end", "built", "logger", "predicted"])
def test_names_of_their_own_are_no_slips(name: str) -> None:
    Term(type("Own", (CE,), {name: lambda self: None})())


def test_hooks_reach_the_losses_that_have_them() -> None:
    calls: list[tuple[Any, ...]] = []
    names = ("attach", "attach_data", "on_epoch")
    hooks = {name: lambda self, *facts, name=name: calls.append((name, *facts)) for name in names}
    objective = Objective({"ce": Term(CE()), "hooked": Term(type("Hooked", (CE,), hooks)())})
    student = nn.Linear(2, 2)
    objective.attach(student, None)
    objective.attach_data(4, LABELS)
    objective.on_epoch(3)
    assert calls == [("attach", student, None), ("attach_data", 4, LABELS), ("on_epoch", 3)]


def test_every_optional_member_of_the_zoo_is_in_the_table() -> None:
    source = "".join(path.read_text() for path in (Path(kd.__file__).parent / "distill").glob("*.py"))
    looked_up = set(re.findall(r'(?:get|has)attr\([\w.]*\bloss, "(\w+)"', source))
    assert looked_up
    assert looked_up <= set(MEMBERS)


@pytest.mark.parametrize(
    "wrong",
    [{"weight": -1.0}, {"weight": float("nan")}, {"warmup": -1}, {"stop": -2}, {"start": 3, "stop": 3}],
    ids=["negative-weight", "nan-weight", "negative-warmup", "negative-stop", "stop-at-start"],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Term(CE(), **wrong)  # type: ignore[arg-type]


def test_warmup_rises_and_stop_ends() -> None:
    term = Term(CE(), weight=2.0, warmup=4, stop=6)
    assert [term.scale(epoch) for epoch in range(8)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 0.0, 0.0]
    assert [Term(CE(), warmup=2, start=3).scale(epoch) for epoch in range(6)] == [0, 0, 0, 0.5, 1, 1]
    objective = Objective({"ce": term, "kd": Term(KL())})
    assert set(objective(tapped(), LABELS, tapped(), epoch=6)[1]) == {"kd"}


def test_teacher_is_not_needed_without_a_term_that_uses_it() -> None:
    assert not Objective({"ce": Term(CE(), teacher="layer")}).uses_teacher
    assert Objective({"ce": Term(CE(), teacher="layer")}).layers("teacher") == []
    assert Objective({"kd": Term(KL(), student="layer", teacher=["layer", ""])}).layers("teacher") == ["layer"]


def test_parts_are_modules_their_parameters_train_and_save() -> None:
    objective = Objective({"hint": Term(Hint(), student="layer", teacher="layer")})
    objective.build(tapped(5), tapped(7))
    assert list(objective.state_dict()) == [
        "terms.hint.loss.regressor.weight",
        "terms.hint.loss.regressor.bias",
    ]
    total, _ = objective(tapped(5), LABELS, tapped(7))
    total.backward()
    assert all(p.grad is not None for p in objective.parameters())
    assert set(copy.deepcopy(objective).state_dict()) == set(objective.state_dict())


def test_the_teacher_gets_no_gradient_and_halves_become_float32() -> None:
    student = {"": torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)}
    teacher = {"": torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)}
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = Objective({"kd": Term(KL())})(student, LABELS, teacher)
    assert total.dtype == torch.float32
    total.backward()
    assert student[""].grad is not None
    assert teacher[""].grad is None


def test_a_loss_that_gives_no_scalar_is_refused() -> None:
    with pytest.raises(InputError, match="scalar"):
        Objective({"kd": Term(KL(reduction="none"))})(tapped(), LABELS, tapped())


def test_description_contains_the_parameters() -> None:
    lines = Objective({"ce": Term(CE(), 0.25), "kd": Term(KL(T=2), 0.75, student="fc:in", warmup=3)}).describe()
    assert lines[0] == "total = 0.25 * ce + 0.75 * kd"
    assert (
        lines[2]
        == "kd = KL(T=2): T^2 * KL(teacher || student), natural log, mean over the batch student=fc:in warmup=3"
    )
