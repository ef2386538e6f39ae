"""Effects of several models are pooled as in published meta-analyses, and the interval covers the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.pooling import pooled
from audiolens.errors import InputError

# Raudenbush's 19 studies of teacher expectancy: effect sizes and their standard errors.
EXPECTANCY = (
    0.03, 0.12, -0.14, 1.18, 0.26, -0.06, -0.02, -0.32, 0.27, 0.80, 0.54, 0.18, -0.02, 0.23, -0.18, -0.06, 0.30, 0.07,
    -0.07,
)  # fmt: skip
ERRORS = (
    0.125, 0.147, 0.167, 0.373, 0.369, 0.103, 0.103, 0.220, 0.164, 0.251, 0.302, 0.223, 0.289, 0.290, 0.159, 0.167,
    0.139, 0.094, 0.174,
)  # fmt: skip


def test_a_published_example_gives_the_published_numbers() -> None:
    """Raudenbush (2009), Table 16.3: DerSimonian-Laird with the refinement of Knapp and Hartung, as metafor checks."""
    found = pooled(EXPECTANCY, ERRORS)
    published = {"tau2": 0.0259, "mu": 0.0893, "se": 0.0636, "low": -0.0442, "high": 0.2229}
    own = {"tau2": found.tau**2, "mu": found.value, "se": found.stderr, "low": found.low, "high": found.high}
    assert own == pytest.approx(published, abs=2e-4)
    assert found.value / found.stderr == pytest.approx(1.405, abs=5e-3)


def naive(y: list[float], s: list[float]) -> tuple[float, float, float]:
    """Mean, standard error and tau by the definitions, one study at a time."""
    k = len(y)
    total = sum(1 / one**2 for one in s)
    common = sum(a / b**2 for a, b in zip(y, s, strict=True)) / total
    q = sum(((a - common) / b) ** 2 for a, b in zip(y, s, strict=True))
    tau2 = (q - (k - 1)) / (total - sum(1 / one**4 for one in s) / total)
    tau2 = tau2 if tau2 > 0 else 0.0
    shares = [1 / (one**2 + tau2) for one in s]
    mean = sum(a * w for a, w in zip(y, shares, strict=True)) / sum(shares)
    refined = sum(w * (a - mean) ** 2 for a, w in zip(y, shares, strict=True)) / (k - 1)
    return mean, math.sqrt((refined if refined > 1 else 1.0) / sum(shares)), math.sqrt(tau2)


def test_it_equals_the_definitions_whether_models_differ_or_not() -> None:
    rng = np.random.default_rng(0)
    taus = []
    for k, spread in ((2, 0.0), (3, 0.0), (6, 0.0), (3, 2.0), (6, 2.0)):
        s = rng.uniform(0.1, 0.5, k)
        y = 0.3 + spread * rng.standard_normal(k) + s * rng.standard_normal(k)
        found, (mean, stderr, tau) = pooled(y, s), naive(y.tolist(), s.tolist())
        assert (found.value, found.stderr, found.tau) == pytest.approx((mean, stderr, tau))
        assert (found.high - found.low) / 2 == pytest.approx(stderr * stats.t.ppf(0.975, k - 1))
        taus.append(found.tau)
    assert min(taus) == 0
    assert max(taus) > 1


@pytest.mark.parametrize(("k", "tau"), [(3, 0.0), (3, 0.3), (6, 0.3)])
def test_the_interval_covers_the_mean_over_models(k: int, tau: float) -> None:
    rng = np.random.default_rng(k)
    covered, plain = 0, 0
    for _ in range(600):
        s = rng.uniform(0.05, 0.2, k)
        y = 0.5 + tau * rng.standard_normal(k) + s * rng.standard_normal(k)
        found = pooled(y, s)
        covered += found.low <= 0.5 <= found.high
        common = (y / s**2).sum() / (1 / s**2).sum()
        plain += abs(common - 0.5) <= 1.96 / np.sqrt((1 / s**2).sum())
    assert covered / 600 >= 0.93
    if tau:
        # An interval that ignores the differences between models is too narrow.
        assert plain / 600 < 0.7


@pytest.mark.parametrize(
    ("values", "stderrs"),
    [([0.1], [0.1]), ([0.1, 0.2], [0.1]), ([0.1, np.nan], [0.1, 0.1]), ([0.1, 0.2], [0.1, 0.0])],
)
def test_what_cannot_be_pooled_is_refused(values: list[float], stderrs: list[float]) -> None:
    with pytest.raises(InputError, match="expected"):
        pooled(values, stderrs)
