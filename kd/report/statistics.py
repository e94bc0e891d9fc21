"""The statistics of a comparison, as pure functions of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """A mean over ``n`` seeds and the sample standard deviation (n - 1); None for one seed."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Differences paired by seed, with their 95 % t interval and two-sided p value.

    ``std`` is None for one seed; ``low``, ``high`` and ``p`` are also None if all differences are equal, because no
    spread can be estimated then.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    std: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.seeds)

    @property
    def wins(self) -> int:
        """The number of pairs with a positive difference."""
        return sum(d > 0 for d in self.differences)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation of the finite values; None without any."""
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return None
    mean = math.fsum(finite) / len(finite)
    return Spread(mean, _deviation(finite, mean), len(finite))


def paired(ours: Mapping[int, float], base: Mapping[int, float], level: float = LEVEL) -> Paired | None:
    """Student's paired t interval of ``ours - base`` over the seeds that both have; None if they share none.

    Args:
        ours: score of the method by seed.
        base: score of the baseline by seed.
        level: confidence level of the two-sided interval.
    """
    seeds = tuple(sorted(set(ours) & set(base)))
    if not seeds:
        return None
    differences = tuple(ours[seed] - base[seed] for seed in seeds)
    n, mean = len(seeds), math.fsum(differences) / len(seeds)
    std = _deviation(differences, mean)
    rounding = 1e-9 * max(abs(score) for seed in seeds for score in (ours[seed], base[seed]))
    if std is None or std <= rounding:
        return Paired(seeds, differences, 0.0 if abs(mean) <= rounding else mean, std, None, None, None)
    error = std / math.sqrt(n)
    reach = float(student_t.ppf((1 + level) / 2, n - 1)) * error
    p = 2 * float(student_t.sf(abs(mean) / error, n - 1))
    return Paired(seeds, differences, mean, std, mean - reach, mean + reach, p)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values (Holm 1979), in the same order; None stays None and does not count."""
    order = sorted((p, at) for at, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    floor = 0.0
    for rank, (p, at) in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p))
        adjusted[at] = floor
    return adjusted


def gap_closed(student: float, scratch: float, teacher: float | None) -> float | None:
    """(student - scratch) / (teacher - scratch); None if the teacher is not better than scratch."""
    if teacher is None or not teacher > scratch:
        return None
    return (student - scratch) / (teacher - scratch)


def sampling_error(accuracy: float, images: int) -> float:
    """Half the width of the 95 % normal interval of an accuracy measured on ``images`` images."""
    return 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 0.0) / images)


def _deviation(values: Sequence[float], mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
