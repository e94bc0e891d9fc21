"""examples/vae: its divergences are torch's, and a few epochs have the documented effect."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.distributions import Independent, Normal, kl_divergence

from kd import Data, Frozen, Memory
from kd.data.sources import digits
from kd.losses import GaussianKL

PATH = Path(__file__).parent.parent / "examples" / "vae" / "vae.py"


@pytest.fixture(scope="module")
def vae() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vae_example", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gaussian(seed: int, scale: float) -> list[torch.Tensor]:
    drawn = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return [drawn[0] * scale, drawn[1]]


def normal(mean: torch.Tensor, log_variance: torch.Tensor) -> Independent:
    return Independent(Normal(mean, (log_variance / 2).exp()), 1)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 3.0]))
def test_both_divergences_are_those_of_torch(vae: ModuleType, seed: int, scale: float) -> None:
    student, teacher = gaussian(seed, scale), gaussian(seed + 1, scale)
    expected = kl_divergence(normal(*teacher), normal(*student)).mean()
    torch.testing.assert_close(GaussianKL()(student, teacher), expected, rtol=1e-12, atol=1e-12)
    standard = normal(torch.zeros_like(student[0]), torch.zeros_like(student[0]))
    expected = kl_divergence(normal(*student), standard).mean()
    torch.testing.assert_close(vae.Prior()(student), expected, rtol=1e-12, atol=1e-12)


def test_a_taught_student_has_posteriors_nearer_to_the_teachers(vae: ModuleType) -> None:
    data = Data(Memory(digits(), batch_size=50, per_class=10))
    teacher = Frozen(vae.fit(data, 32, 15, seed=0).student)
    far, near = vae.fit(data, 16, 15, seed=1), vae.fit(data, 16, 15, seed=1, teacher=teacher)
    batch = next(iter(data.test_dataloader()))
    distances = []
    for module in (far, near):
        student = vae.VAEDistiller(module.student, teacher, vae.objective(1.0), None, data.shape, data.classes)
        _, parts = student.total(student.taps(batch.images), batch, teacher(batch))
        distances.append(float(parts["posterior"]))
    assert distances[1] < 0.7 * distances[0], distances
    assert vae.bound(near, data) < 60


def test_the_program_prints_the_three_bounds(vae: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found = vae.main(["--epochs", "2", "--seeds", "0"])
    assert [len(values) for values in found.values()] == [1, 1, 1]
    assert capsys.readouterr().out.count("negative bound on test") == 3
