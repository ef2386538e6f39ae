"""Bootstrap intervals that resample clusters (prompts), for any statistic computed from rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats

from audiolens.checks import checked_amount, checked_count, checked_seed
from audiolens.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval over clusters (prompts). Its ends are NaN if there are fewer than two clusters."""

    low: float
    high: float
    confidence: float
    n_clusters: int


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " draw"]], float],
    clusters: np.ndarray,
    strata: np.ndarray | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval of `statistic` over resampled clusters.

    Args:
        statistic: a function that takes row indices (with repeats) and returns a number.
        clusters: the cluster of each row.
        strata: the stratum of each row. A cluster is replaced only by clusters that cover the same strata.
    """
    checked_resampling(confidence, n_bootstrap)
    groups = _Groups.of(clusters, strata)
    values = np.array([statistic(rows) for rows in groups.draws(n_bootstrap, seed)])
    return interval_of(values, groups.fewest, confidence, n_clusters=len(groups.members))


def checked_resampling(confidence: object, n_bootstrap: object) -> None:
    """Reject settings that would silently give an inverted interval, or no interval.

    Raises:
        InputError: if `confidence` is not between 0 and 1, or `n_bootstrap` is not a whole number of at least 0.
    """
    if not 0 < checked_amount("confidence", confidence) < 1:
        raise InputError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95.")
    checked_count("n_bootstrap", n_bootstrap, least=0)


def resampled(
    clusters: ArrayLike, n_bootstrap: int, seed: int = 0, strata: np.ndarray | None = None
) -> list[Int[np.ndarray, " draw"]]:
    """Return the row indices of every bootstrap draw, for computing several statistics on the same draws.

    Whole clusters are drawn with replacement. The list is empty if there are fewer than two clusters.
    """
    return _Groups.of(np.asarray(clusters), strata).draws(n_bootstrap, seed)


def interval_of(
    values: Float[np.ndarray, " draw"], fewest: int, confidence: float = 0.95, n_clusters: int | None = None
) -> Interval:
    """Return the interval of a statistic from its values over the draws. Its ends are NaN if there are no draws.

    With few clusters, plain percentile intervals are too narrow: with 8 prompts, a 95% interval covers about 90%. The
    levels are therefore widened to match Student's t distribution (Hesterberg 2015, "What teachers should know about
    the bootstrap", section 5.2).
    """
    count = fewest if n_clusters is None else n_clusters
    if not len(values):
        return Interval(float("nan"), float("nan"), confidence, count)
    low, high = np.quantile(values, levels(confidence, fewest))
    return Interval(float(low), float(high), confidence, count)


def levels(confidence: float, clusters: int) -> tuple[float, float]:
    """Return the lower and upper percentile levels, widened for few clusters (see `interval_of`)."""
    # scipy does not accept fractions.
    outside = (1 - float(confidence)) / 2
    tail = stats.norm.cdf(np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(outside, clusters - 1))
    return float(tail), float(1 - tail)


@dataclass(frozen=True, eq=False)
class _Groups:
    """Rows grouped by cluster, and clusters grouped by the strata that they cover."""

    members: list[Int[np.ndarray, " _"]]
    groups: list[list[int]]

    @classmethod
    def of(cls, clusters: np.ndarray, strata: np.ndarray | None) -> _Groups:
        _, which = np.unique(clusters, return_inverse=True)
        members = [np.flatnonzero(which == cluster) for cluster in range(which.max() + 1)]
        groups: dict[frozenset[Any], list[int]] = {}
        for cluster, rows in enumerate(members):
            covers = frozenset() if strata is None else frozenset(np.asarray(strata)[rows].tolist())
            groups.setdefault(covers, []).append(cluster)
        return cls(members, list(groups.values()))

    @property
    def fewest(self) -> int:
        return min(len(group) for group in self.groups)

    def draws(self, count: int, seed: int) -> list[Int[np.ndarray, " draw"]]:
        if self.fewest < 2:
            return []
        rng = np.random.default_rng(checked_seed(seed))
        found = []
        for _ in range(checked_count("n_bootstrap", count, least=0)):
            chosen = np.concatenate([rng.choice(group, len(group)) for group in self.groups])
            found.append(np.concatenate([self.members[cluster] for cluster in chosen]))
        return found
