"""Intervals of whole grids are those that `statistics.bootstrap` gives each cell, and cover as often as they say."""

import numpy as np
import pytest

from analysis import statistics
from analysis.intervals import means


def test_each_cell_has_the_interval_that_it_would_have_alone():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(12), 3)
    values = rng.normal(size=(36, 2, 3)) + rng.normal(size=12)[prompts][:, None, None]
    found = means(values, prompts, n_bootstrap=4000)
    alone = statistics.bootstrap(lambda index: float(values[index, 1, 2].mean()), prompts, n_bootstrap=4000)
    assert found.mean[1, 2] == pytest.approx(values[:, 1, 2].mean())
    assert found.low[1, 2] == pytest.approx(alone.low, abs=0.05)
    assert found.high[1, 2] == pytest.approx(alone.high, abs=0.05)
    assert found.n_clusters == 12


def test_intervals_cover_the_truth_when_rows_share_a_prompt():
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(10), 4)
    own = rng.normal(size=(10, 400))
    values = own[prompts] + 0.3 * rng.normal(size=(40, 400))
    found = means(values, prompts)
    assert 0.91 <= ((found.low <= 0) & (found.high >= 0)).mean() <= 0.985


def test_what_is_missing_is_left_out_and_one_prompt_has_no_interval():
    values = np.array([[1.0, np.nan], [3.0, 5.0]])
    found = means(values, ["a", "b"])
    assert found.mean.tolist() == [2.0, 5.0]
    alone = means(values, ["a", "a"])
    assert np.isnan(alone.low).all()
