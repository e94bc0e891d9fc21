"""The divergence family: identities, limits and laws, over random logits."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

import kd
from kd.errors import InputError
from kd.losses import (
    CE,
    GaussianKL,
    alpha_beta,
    cross_entropy,
    entropy,
    gaussian_kl,
    js,
    kl,
    kl_div,
    reverse_kl,
    soft_cross_entropy,
    symmetric_kl,
    total_variation,
)

seeds = st.integers(0, 2**31)
temperatures = st.floats(0.5, 20)


def logits(seed: int, scale: float = 5.0, shape: tuple[int, int] = (6, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return student.requires_grad_(True), teacher


@given(seeds, temperatures)
def test_kl_is_soft_cross_entropy_minus_entropy_and_has_its_gradient(seed: int, T: float) -> None:
    student, teacher = logits(seed)
    divergence = kl(student, teacher, T)
    crossed = T**2 * soft_cross_entropy(student / T, (teacher / T).softmax(1))
    assert math.isclose(divergence, crossed - T**2 * entropy(teacher, T), rel_tol=1e-12, abs_tol=1e-12 * T**2)
    (by_kl,), (by_crossed,) = torch.autograd.grad(divergence, student), torch.autograd.grad(crossed, student)
    torch.testing.assert_close(by_kl, by_crossed, rtol=1e-12, atol=1e-12)
    closed_form = T * ((student / T).softmax(1) - (teacher / T).softmax(1)) / len(student)
    torch.testing.assert_close(by_kl, closed_form.detach(), rtol=1e-10, atol=1e-12)


@given(seeds, temperatures)
def test_divergences_are_zero_at_equality_and_positive_elsewhere(seed: int, T: float) -> None:
    student, teacher = logits(seed)
    for divergence in (kl, reverse_kl, symmetric_kl, js, total_variation, alpha_beta):
        assert abs(divergence(teacher, teacher, T=T)) < 1e-12
        assert divergence(student, teacher, T=T) > 0


@given(seeds)
def test_bounds_and_symmetry(seed: int) -> None:
    student, teacher = logits(seed, scale=30)
    assert js(student, teacher) <= math.log(2) + 1e-12
    assert total_variation(student, teacher) <= 1 + 1e-12
    for divergence in (js, total_variation, symmetric_kl):
        assert math.isclose(divergence(student, teacher), divergence(teacher, student), rel_tol=1e-12)


@given(seeds)
def test_alpha_beta_reaches_its_limits(seed: int) -> None:
    student, teacher = logits(seed, scale=2)
    p, q = teacher.softmax(1), student.softmax(1)
    known = {
        (1.0, 0.0): kl(student, teacher, T=1),
        (0.0, 1.0): reverse_kl(student, teacher, T=1),
        (1.0, 1.0): (p - q).square().sum(1).mean() / 2,
        (0.5, 0.5): 2 * (p.sqrt() - q.sqrt()).square().sum(1).mean(),
        (0.0, 0.0): (p.log() - q.log()).square().sum(1).mean() / 2,
    }
    for (a, b), value in known.items():
        torch.testing.assert_close(alpha_beta(student, teacher, a, b), value, rtol=1e-9, atol=1e-12)
        near = alpha_beta(student, teacher, a + 1e-5, b + 2e-5)
        torch.testing.assert_close(near, value, rtol=1e-2, atol=1e-3)
    opposite = alpha_beta(student, teacher, 0.7, -0.7)
    torch.testing.assert_close(alpha_beta(student, teacher, 0.7, -0.7 + 1e-6), opposite, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_is_torchs_argument_for_argument(reduction: str, log_target: bool) -> None:
    student, teacher = logits(0)
    log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
    target = log_p if log_target else log_p.exp()
    ours = kl_div(log_q, target, reduction, log_target)
    torch.testing.assert_close(ours, F.kl_div(log_q, target, reduction=reduction, log_target=log_target))
    torch.testing.assert_close(kl_div(log_q, target, reduction, log_target, "bits"), ours / math.log(2))


def test_log_probabilities_may_stand_for_logits() -> None:
    student, teacher = logits(1)
    torch.testing.assert_close(kl(student.log_softmax(1), teacher.log_softmax(1)), kl(student, teacher))


def test_gaussian_kl_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_s, log_s, mean_t, log_t = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean_t, (log_t / 2).exp()), normal(mean_s, (log_s / 2).exp()))
    torch.testing.assert_close(
        gaussian_kl((mean_s, log_s), (mean_t, log_t)), expected.sum(1).mean(), rtol=1e-12, atol=0
    )
    with pytest.raises(InputError, match="two layers"):
        GaussianKL()([mean_s], [mean_t, log_t])


def test_labels_may_be_probabilities_and_smoothing_is_a_mixture() -> None:
    student, _ = logits(2)
    labels = torch.arange(6)
    soft = F.one_hot(labels, 7).double()
    torch.testing.assert_close(cross_entropy(student, labels), cross_entropy(student, soft))
    mixed = 0.9 * soft + 0.1 / 7
    torch.testing.assert_close(CE(label_smoothing=0.1)(student, labels), cross_entropy(student, mixed))


def test_a_vector_without_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs \[B, C\]"):
        kl_div(torch.zeros(3).log_softmax(0), torch.ones(3) / 3)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "symmetric_kl", "soft_ce", "js", "tv"])
def test_constructors_refuse_invalid_arguments(name: str) -> None:
    for wrong in ({"T": 0.0}, {"T": -1.0}, {"T": math.nan}, {"T": math.inf}, {"reduction": "batch_mean"}):
        with pytest.raises(InputError):
            kd.losses[name](**wrong)
    with pytest.raises(InputError, match="did you mean 'batchmean'"):
        kd.losses[name](reduction="batch_mean")


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "symmetric_kl", "soft_ce", "js", "tv", "alpha_beta"])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_float32_is_finite_and_near_float64(name: str, scale: float) -> None:
    loss = kd.losses[name]()
    student, teacher = logits(3, scale)
    student, teacher = student.detach().clamp(-60, 60), teacher.clamp(-60, 60)
    exact = loss(student, teacher)
    rough = student.float().requires_grad_(True)
    value = loss(rough, teacher.float())
    (gradient,) = torch.autograd.grad(value, rough)
    assert value.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e8])
def test_kl_is_precise_for_large_logits(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(32, 100, generator=generator)
    teacher = scale * torch.randn(32, 100, generator=generator)
    exact = kl(student.double(), teacher.double(), T=4.0)
    assert float(kl(student, teacher, T=4.0)) == pytest.approx(float(exact), rel=1e-5)
