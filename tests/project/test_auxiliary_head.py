"""The comparison of models with and without the auxiliary head finds planted differences."""

from __future__ import annotations

from dataclasses import replace

import auxiliary_head
import numpy as np
import pytest
from replication.estimates import Estimate

from analysis.probing import ProbeResult, probe

NAMES = ("plain", "headed")


def planted(noises: tuple[float, float], n: int = 200) -> ProbeResult:
    """Probes of two blocks that hold the label with noise, of these standard deviations."""
    rng = np.random.default_rng(3)
    labels = rng.uniform(size=n)
    values = np.stack([labels[:, None] + noise * rng.normal(size=(n, 4)) for noise in noises])
    found = probe(None, values, labels, task="regression", groups=range(n), n_shuffles=1)
    return replace(found, baselines={"codec": found.scored[0]})


def test_the_difference_is_that_of_the_scores_and_its_interval_tells_planted_ones_apart() -> None:
    pair = auxiliary_head.Pair(without=planted((0.1, 1.0)), with_head=planted((0.1, 0.1)))
    value, low, high = pair.lost(last=True)
    assert value == pytest.approx(pair.with_head.scores[-1] - pair.without.scores[-1], abs=0.01)
    assert 0.3 < low < value < high
    # Block 0 holds the label equally well in both.
    value, low, high = pair.lost(last=False)
    assert low < 0.02
    assert high > -0.02
    assert abs(value) < 0.02
    row = auxiliary_head.reading({"tempo": pair}, NAMES, 200)[-1]
    last, best = pair.without.scores[-1], pair.without.scores[0]
    assert row.startswith(f"| tempo | {best:.2f} | {last:.2f} | {pair.with_head.scores[-1]:.2f} | +0.")
    assert f"| {best:.2f} (0) |" in row


def test_the_share_of_an_effect_is_that_of_the_logarithms() -> None:
    own, other = Estimate(0.21, stderr=0.02, failed=0.1), Estimate(0.4641, stderr=0.02, failed=0.0)
    value, low, high = auxiliary_head.share(own, other)
    assert value == pytest.approx(0.5)
    # By the delta method.
    error = np.hypot(0.02 / own.scaled, 0.02 / other.scaled) * value
    assert (low, high) == (pytest.approx(value - 1.96 * error, abs=0.02), pytest.approx(value + 1.96 * error, abs=0.02))
    effects = {
        "plain": dict.fromkeys(auxiliary_head.EFFECTS, own),
        "headed": dict.fromkeys(auxiliary_head.EFFECTS, other),
    }
    lines = auxiliary_head.steering(effects, NAMES)
    assert [line.split("|")[1].strip() for line in lines[-4:]] == ["fast", "slow", "bright", "dark"]
    assert "| 10% |" in lines[-1]
    assert lines[-1].endswith(f"| 50% [{low:.0%}, {high:.0%}] |")


def test_a_model_without_claims_is_named() -> None:
    (line,) = auxiliary_head.steering({"headed": {}}, NAMES)
    assert "the claims about plain were not measured" in line
    for one in auxiliary_head.stored().values():
        assert one.numbers.keys() >= set(auxiliary_head.EFFECTS)
