"""Settings for intervals and p-values, and bootstrap intervals that resample clusters (prompts) of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats

from audiolens.checks import MOST_SEED, checked_amount, checked_count, checked_seed
from audiolens.door import guarded
from audiolens.errors import InputError

_CELLS = 1_000_000
"""The most numbers (of draws x rows) that are in memory at a time."""
CONFIDENCE = 0.95
"""The coverage of every interval, unless a caller gives another one."""
COVERAGE = f"{100 * CONFIDENCE:g}%"
"""`CONFIDENCE` as text, for pages, captions and tables."""


@guarded
@dataclass(frozen=True)
class Resampling:
    """The settings for intervals and p-values in one object.

    An example is `effect(..., resampling=Resampling(n_bootstrap=200))`.

    Every function that takes some of these settings also accepts a `Resampling` as `resampling=`. A setting of `None`
    keeps the default of the function. Giving a setting that the function does not use raises an error.

    Attributes:
        n_bootstrap: number of bootstrap draws; 0 gives no interval.
        n_permutations: number of permutations in a test, such as label shuffles for a probe or a PCA (`n_shuffles`).
        confidence: coverage of the intervals.
        seed: seed of the draws and permutations.

    Raises:
        InputTypeError, InputError: when the object is created, if a setting has the wrong type or is out of range.
    """

    n_bootstrap: int | None = None
    n_permutations: int | None = None
    confidence: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_bootstrap", "n_permutations"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_count(name, getattr(self, name), least=0))
        if self.confidence is not None:
            checked_resampling(self.confidence, 0)
        if self.seed is not None:
            object.__setattr__(self, "seed", checked_count("seed", self.seed, 0, MOST_SEED))


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
    confidence: float = CONFIDENCE,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval of `statistic` over resampled clusters.

    Args:
        statistic: a function that takes row indices (with repeats) and returns a number.
        clusters: the cluster of each row.
        strata: the stratum of each row. In a draw, a cluster is replaced only by clusters that cover the same strata.
    """
    checked_resampling(confidence, n_bootstrap)
    groups = _Groups.of(clusters, strata)
    values = np.array([statistic(rows) for rows in groups.draws(n_bootstrap, seed)])
    return interval_of(values, groups.fewest, confidence, n_clusters=len(groups.members))


def bootstrap_median(
    values: Float[np.ndarray, " row"],
    clusters: np.ndarray,
    confidence: float = CONFIDENCE,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the interval of `bootstrap` for the median of `values`, in less time and memory.

    A draw is represented by how often each cluster was chosen, which the conditions of a sweep share.
    """
    checked_resampling(confidence, n_bootstrap)
    _, which = np.unique(clusters, return_inverse=True)
    groups = _Groups.of(which, None)
    order = np.argsort(values, kind="stable")
    ranked, cluster = values[order], which[order]
    medians = []
    few = n_bootstrap * len(groups.members) <= _CELLS
    times_chosen = _kept_times(which.tobytes(), n_bootstrap, seed) if few else _times_chosen(groups, n_bootstrap, seed)
    for times in times_chosen:
        last = np.cumsum(times[:, cluster], axis=1)
        # The middle of the draw, or the mean of the two rows next to it.
        low, high = (last[:, -1:] - 1) // 2, last[:, -1:] // 2
        ends = [ranked[(last <= place).sum(1)] for place in (low, high)]
        medians.append((ends[0] + ends[1]) / 2)
    found = np.concatenate(medians) if medians else np.empty(0)
    return interval_of(found, groups.fewest, confidence, n_clusters=len(groups.members))


def checked_resampling(confidence: object, n_bootstrap: object) -> None:
    """Reject settings that would silently give an inverted interval, or no interval.

    Raises:
        InputError: if `confidence` is not between 0 and 1, or `n_bootstrap` is not a whole number of at least 0.
    """
    if not 0 < checked_amount("confidence", confidence) < 1:
        raise InputError(f"confidence={confidence}: expected a number between 0 and 1, such as {CONFIDENCE:g}.")
    checked_count("n_bootstrap", n_bootstrap, least=0)


def resampled(
    clusters: ArrayLike, n_bootstrap: int, seed: int = 0, strata: np.ndarray | None = None
) -> list[Int[np.ndarray, " draw"]]:
    """Return the row indices of every bootstrap draw, for computing several statistics on the same draws.

    Whole clusters are drawn with replacement. The list is empty if there are fewer than two clusters.
    """
    return list(_Groups.of(np.asarray(clusters), strata).draws(n_bootstrap, seed))


def interval_of(
    values: Float[np.ndarray, " draw"], fewest: int, confidence: float = CONFIDENCE, n_clusters: int | None = None
) -> Interval:
    """Return the interval of a statistic from its values over the draws. Its ends are NaN if there are no draws.

    With few clusters, plain percentile intervals are too narrow. For example, a 95% interval over 8 prompts covers the
    true value only about 90% of the time. The percentile levels are therefore widened to match Student's t distribution
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.2).
    """
    count = fewest if n_clusters is None else n_clusters
    if not len(values):
        return Interval(float("nan"), float("nan"), confidence, count)
    low, high = np.quantile(values, levels(confidence, fewest))
    return Interval(float(low), float(high), confidence, count)


def levels(confidence: float, clusters: int) -> tuple[float, float]:
    """Return the lower and upper percentile levels, widened for few clusters (see `interval_of`)."""
    # scipy does not accept `Fraction` values.
    outside = (1 - float(confidence)) / 2
    tail = stats.norm.cdf(np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(outside, clusters - 1))
    return float(tail), float(1 - tail)


@lru_cache(maxsize=1)
def _kept_times(which: bytes, n_bootstrap: int, seed: int) -> list[Int[np.ndarray, "draw cluster"]]:
    return list(_times_chosen(_Groups.of(np.frombuffer(which, dtype=np.int64), None), n_bootstrap, seed))


def _times_chosen(groups: _Groups, n_bootstrap: int, seed: int) -> Iterator[Int[np.ndarray, "draw cluster"]]:
    """Yield how often each cluster is chosen, for as many draws at a time as fit in the memory that is meant for it."""
    count, rows = len(groups.members), sum(map(len, groups.members))
    draws = groups.chosen(n_bootstrap, seed)
    while part := list(islice(draws, max(1, _CELLS // rows))):
        yield np.stack([np.bincount(chosen, minlength=count) for chosen in part]).astype(np.int32)


@dataclass(frozen=True, eq=False)
class _Groups:
    """Rows grouped by cluster, and clusters grouped by the strata that they cover."""

    members: list[Int[np.ndarray, " _"]]
    groups: list[list[int]]

    @classmethod
    def of(cls, clusters: np.ndarray, strata: np.ndarray | None) -> _Groups:
        _, which = np.unique(clusters, return_inverse=True)
        # Sorting takes less time than looking for each cluster in all rows.
        members = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
        groups: dict[frozenset[Any], list[int]] = {}
        for cluster, rows in enumerate(members):
            covers = frozenset() if strata is None else frozenset(np.asarray(strata)[rows].tolist())
            groups.setdefault(covers, []).append(cluster)
        return cls(members, list(groups.values()))

    @property
    def fewest(self) -> int:
        return min(len(group) for group in self.groups)

    def draws(self, count: int, seed: int) -> Iterator[Int[np.ndarray, " draw"]]:
        for chosen in self.chosen(count, seed):
            yield np.concatenate([self.members[cluster] for cluster in chosen])

    def chosen(self, count: int, seed: int) -> Iterator[Int[np.ndarray, " cluster"]]:
        """Yield the clusters of every draw. There is no draw if there are fewer than two clusters."""
        rng, groups = np.random.default_rng(checked_seed(seed)), [np.array(group) for group in self.groups]
        for _ in range(checked_count("n_bootstrap", count, least=0) if self.fewest > 1 else 0):
            yield np.concatenate([rng.choice(group, len(group)) for group in groups])
