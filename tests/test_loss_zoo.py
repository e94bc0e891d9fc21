"""Properties of every registered loss, whatever its formula."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from runners import EXAMPLES
from torch import Tensor, nn

import kd
from kd import Objective, Term
from kd.errors import InputError
from kd.registry import losses

NAMES = sorted(losses)
# losses that are smallest, and 0 or constant, where the student says exactly what the teacher says
MINIMAL = (
    *("kl", "reverse_kl", "symmetric_kl", "js", "tv", "alpha_beta", "gaussian_kl", "dkd", "dist", "mlkd", "sdd"),
    *("at", "sp", "rkd", "cwd", "pkd", "ickd", "fsp", "nst", "catkd"),
)
SAMPLES = 64


def every(change: Any, value: Any) -> Any:
    """``change`` applied to a tensor, or to each of a list."""
    return [change(v) for v in value] if isinstance(value, (list, tuple)) else change(value)


def floats(example: dict[str, Any], change: Any) -> dict[str, Any]:
    def of(value: Any) -> Any:
        return every(lambda v: change(v) if v.is_floating_point() else v, value)

    return {word: of(value) for word, value in example.items()}


def made(name: str, example: dict[str, Any], **options: Any) -> nn.Module:
    """The loss, built from two samples of the example."""
    torch.manual_seed(0)
    if name == "crd":
        options = {"negatives": 32, **options}
    loss = losses[name](**options)
    if hasattr(loss, "attach_data"):
        loss.attach_data(SAMPLES, torch.arange(SAMPLES) % 10)
    if hasattr(loss, "attach"):
        loss.attach(TinyNet(), TinyNet())
    if hasattr(loss, "build"):
        wanted = inspect.signature(loss.build).parameters
        with torch.no_grad():
            loss.build(**{word: every(lambda v: v[:2], example[word]) for word in wanted})
    return loss


class TinyNet(nn.Module):
    """Something to attach to: two stages with batch norms, and a classifier as wide as the examples' maps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.fc = nn.Linear(16, 10)


def leaves(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def call(loss: nn.Module, example: dict[str, Any]) -> Tensor:
    torch.manual_seed(0)  # mgd draws a mask
    return loss(**{word: example[word] for word in inspect.signature(loss.forward).parameters})


def answered(loss: nn.Module, example: dict[str, Any]) -> None:
    """Asserts that the loss answers with a finite scalar, or refuses in one sentence."""
    try:
        value = call(loss, example)
    except InputError as error:
        said = str(error)
    else:
        said = ""
        assert value.ndim == 0
        assert value.isfinite()
    assert said == "" or (len(said) > 20 and "\n" not in said)


def test_every_loss_has_an_example() -> None:
    assert set(NAMES) == set(EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_all_trainable_parts_but_not_the_teacher(name: str) -> None:
    example = EXAMPLES[name](8)
    loss = made(name, example)
    example = floats(example, lambda v: v.clone().requires_grad_(True))
    term = Term(loss)
    sides = {side: {"": example[side]} for side in ("student", "teacher") if side in example}
    for side, tapped in sides.items():
        if isinstance(tapped[""], (list, tuple)):
            sides[side] = {str(i): value for i, value in enumerate(tapped[""])}
            term.sources[side] = [str(i) for i in range(len(tapped[""]))]
    rest = {word: example.get(word) for word in ("labels", "index")}
    for epoch in (0, 10_000):  # ft trains its paraphraser first
        if hasattr(loss, "on_epoch"):
            loss.on_epoch(epoch)
        value = term(student=sides.get("student"), teacher=sides.get("teacher"), **rest)
        assert value.ndim == 0
        assert value.isfinite()
        value.backward()
    if "student" in term.needs:
        moved = [leaf.grad is not None and bool(leaf.grad.abs().sum() > 0) for leaf in leaves(example["student"])]
        assert any(moved)
    if "teacher" in term.needs:
        assert all(leaf.grad is None for leaf in leaves(example["teacher"]))
    for key, parameter in loss.named_parameters():
        assert parameter.grad is not None, key


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 1e-3, 1.0, 20.0]))
def test_float32_is_finite_and_near_float64(name: str, seed: int, scale: float) -> None:
    example = EXAMPLES[name](6)
    generator = torch.Generator().manual_seed(seed)
    noise = floats(example, lambda v: (v + 0.3 * torch.randn(v.shape, generator=generator)) * scale)
    noise = {word: value if word in ("student", "teacher") else example[word] for word, value in noise.items()}
    noise = floats(noise, lambda v: v.clamp(-60, 60))
    loss = made(name, example).eval()
    exact = call(copy.deepcopy(loss).double(), floats(noise, Tensor.double))
    rough = floats(noise, lambda v: v.clone().requires_grad_(True))
    value = call(loss, rough)
    assert value.isfinite()
    assert exact.isfinite()
    if scale:  # constant maps that are standardised show nothing but rounding
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5 * max(1.0, scale))
    wanted = [v for word in ("student",) if word in rough for v in leaves(rough[word]) if v.requires_grad]
    if value.requires_grad and wanted:
        for gradient in torch.autograd.grad(value, wanted, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_under_autocast_is_finite(name: str, dtype: torch.dtype) -> None:
    example = EXAMPLES[name](6)
    term = Term(made(name, example))
    low = floats(example, lambda v: (v * 10).clamp(-60, 60).to(dtype))
    sides: dict[str, dict[str, Tensor]] = {}
    for side in ("student", "teacher"):
        if side in low:
            parts = leaves(low[side])
            sides[side] = {str(i): part for i, part in enumerate(parts)}
            many = isinstance(low[side], (list, tuple))
            term.sources[side] = [str(i) for i in range(len(parts))] if many else "0"
    labels = example.get("labels")
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = Objective({"it": term})(
            sides.get("student", {}),
            torch.zeros(6, dtype=torch.long) if labels is None else labels,
            sides.get("teacher"),
            example.get("index"),
        )
    assert total.isfinite()
    assert total.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in MINIMAL if name in losses])
@given(seed=st.integers(0, 2**31))
def test_it_is_smallest_where_the_student_equals_the_teacher(name: str, seed: int) -> None:
    example = floats(EXAMPLES[name](6), Tensor.double)
    generator = torch.Generator().manual_seed(seed)
    same = {**example, "student": every(Tensor.clone, example["teacher"])}
    loss = made(name, same).double().eval()
    if list(loss.parameters()):
        pytest.skip(f"{name} has a trained part between student and teacher")
    moved = every(lambda v: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype), same["student"])
    at_teacher, beside = call(loss, same), call(loss, {**same, "student": moved})
    assert at_teacher <= beside + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_state_and_copies_are_complete(name: str) -> None:
    example = EXAMPLES[name](6)
    loss = made(name, example).eval()
    torch.manual_seed(1)
    twin = made(name, example).eval()
    twin.load_state_dict(loss.state_dict())
    torch.testing.assert_close(call(twin, example), call(loss, example))
    torch.testing.assert_close(call(copy.deepcopy(loss), example), call(loss, example))


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_one_and_soft_labels_work_or_give_a_clear_error(name: str) -> None:
    example = EXAMPLES[name](6)
    one = {word: every(lambda v: v[:1], value) for word, value in EXAMPLES[name](6).items()}
    soft = {**example, "labels": torch.full((6, 10), 0.1)}
    for arguments in (one, soft):
        answered(made(name, example).eval(), arguments)


@pytest.mark.parametrize("name", NAMES)
def test_unbuilt_loss_gives_a_clear_error(name: str) -> None:
    example = EXAMPLES[name](6)
    loss = losses[name](**({"negatives": 32} if name == "crd" else {}))
    answered(loss, example)


LOGIT = [name for name in NAMES if "standardise" in inspect.signature(losses[name]).parameters]


@pytest.mark.parametrize("name", LOGIT)
def test_standardised_logits_are_invariant_to_scale_and_shift(name: str) -> None:
    example = floats(EXAMPLES[name](6), Tensor.double)
    if name in ("mlkd", "wsld"):
        pytest.skip("mlkd standardises in its instance terms alone, wsld not in its sample weights")
    loss = made(name, example, standardise=True).double()
    moved = {**example, "student": every(lambda v: 3 * v + 5, example["student"])}
    torch.testing.assert_close(call(loss, moved), call(loss, example), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_are_enough(name: str) -> None:
    example = EXAMPLES[name](6)
    words = inspect.signature(losses[name].forward).parameters
    tensors = [v for word in ("student", "teacher") if word in words for v in leaves(example[word])]
    if any(v.shape[1:] != (10,) for v in tensors):
        pytest.skip("it does not look at logits")
    two = {word: every(lambda v: v[:, :2] if v.ndim == 2 else v % 2, value) for word, value in example.items()}
    value = call(made(name, two), two)
    assert value.isfinite()


def test_all_names_are_documented_by_a_formula() -> None:
    for name in NAMES:
        first = (inspect.getdoc(losses[name]) or "").split("\n")[0]
        assert 10 < len(first) <= 118, name
        assert first.endswith("."), name
    assert len(NAMES) >= 14
    assert kd.losses["kl"] is losses["kl"]
