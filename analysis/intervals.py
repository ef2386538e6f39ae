"""Means of many cells at once with intervals clustered by prompt: `statistics.bootstrap`, drawn for whole grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True, eq=False)
class Means:
    """Means over rows of each cell, and the ends of their bootstrap intervals (NaN with fewer than two prompts)."""

    mean: Float[np.ndarray, "*cell"]
    low: Float[np.ndarray, "*cell"]
    high: Float[np.ndarray, "*cell"]
    confidence: float
    n_clusters: int


def means(
    values: Float[np.ndarray, "row *cell"],
    prompts: Sequence[Any] | np.ndarray,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Means:
    """The mean over rows of every cell, with a percentile interval over prompts.

    Whole prompts are resampled, and the percentiles widened as Student's t would for so few of them, as in
    `statistics.bootstrap`. NaN entries are left out, cell by cell.
    """
    rows = np.asarray(values, dtype=float)
    flat = rows.reshape(len(rows), -1)
    _, which = np.unique(np.asarray([str(prompt) for prompt in prompts]), return_inverse=True)
    n = int(which.max()) + 1
    there = np.isfinite(flat)
    sums, counts = np.zeros((n, flat.shape[1])), np.zeros((n, flat.shape[1]))
    np.add.at(sums, which, np.where(there, flat, 0.0))
    np.add.at(counts, which, there)
    mean = _ratio(sums.sum(0), counts.sum(0))
    if n < 2 or n_bootstrap < 1:
        low = high = np.full_like(mean, np.nan)
    else:
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
        draws = _ratio(drawn @ sums, drawn @ counts)
        tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
        low, high = np.nanquantile(draws, [tail, 1 - tail], axis=0)
    shape = rows.shape[1:]
    return Means(mean.reshape(shape), low.reshape(shape), high.reshape(shape), confidence, n)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
