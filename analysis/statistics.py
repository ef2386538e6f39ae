"""The statistics of all reported results: paired effects, clustered intervals, rank tests and corrections.

The functions take numpy arrays and return frozen results. They do not depend on models or sound. Rows that share a
prompt are not independent, so intervals resample whole prompts instead of single rows. The tests check the coverage or
false-positive rate of each function on simulated data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy import stats

from analysis.resampling import (
    CONFIDENCE,
    Interval,
    Resampling,
    bootstrap,
    bootstrap_median,
    checked_resampling,
    levels,
)
from audiolens import ranking
from audiolens.checks import (
    as_array,
    checked_count,
    checked_flags,
    checked_seed,
    numbers_of,
    real_number,
    refuse_masked,
    shown,
)
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.groups import takes

MOST_FAILED = 0.10
"""The largest share of failed clips at which an effect can be claimed."""
CHOSEN_FAILED = MOST_FAILED / 2
"""The largest share of failed clips at which a setting can be chosen.

It is half the share that a claim allows, because a chosen setting does worse on new clips.
"""
LEVEL = 0.05
"""The largest p-value against controls at which an effect can be claimed."""
FEWEST_CONTROLS = 19
"""The smallest number of controls with which p can reach `LEVEL`, because p is at least 1 / (19 + 1)."""

_LEAST_RATIO = 0.01
N_PERMUTATIONS = 999
"""Number of sign-flip permutations for the p-values of a grid."""

UNTESTED = "too few prompts or shuffles to test: "
"""Text printed before a p-value that could not have fallen below `LEVEL`."""

Alternative = Literal["greater", "less", "two-sided"]


@guarded
@dataclass(frozen=True)
class Effect:
    """The median change of a measure from baseline to steered clips, with its uncertainty.

    Attributes:
        value: median over pairs of steered / baseline - 1 (0.3 is 30% more). If `relative` is false, it is the median
            of steered - baseline, in the measure's own unit. Pairs whose steered clip failed count as 0.
        interval: bootstrap interval of `value`, resampling prompts.
        failed_share: share of the pairs in which the steered clip failed or has no measure.
        n_pairs: number of pairs used. Pairs whose baseline could not be measured are left out.
        n_left_out: number of pairs left out.
        relative: whether `value` is a ratio minus 1.
        mean: the mean change over the same pairs, that is, the geometric mean of steered / baseline, minus 1, or the
            mean difference if `relative` is false. With few pairs, the mean is less noisy than the median. Ratios below
            1/100 count as 1/100.

    An effect does not show that this particular direction caused the change, because any added vector can change a
    measure. Use `rank_test` to compare it with the effects of random directions.
    """

    value: float
    interval: Interval
    failed_share: float
    n_pairs: int
    n_left_out: int
    relative: bool = True
    mean: float = float("nan")

    @property
    def claimable(self) -> bool:
        """Whether few enough clips failed and the interval excludes 0."""
        excludes_zero = self.interval.low > 0 or self.interval.high < 0
        return self.failed_share <= MOST_FAILED and excludes_zero

    def __repr__(self) -> str:
        i, unit = self.interval, "+.1%" if self.relative else "+.3g"
        return (
            f"Effect({self.value:{unit}} [{i.low:{unit}}, {i.high:{unit}}], "
            f"{self.n_pairs} pairs of {i.n_clusters} prompts, {self.failed_share:.0%} failed)"
        )


@guarded
@dataclass(frozen=True)
class AUC:
    """How often a positive row scores higher than a negative one. Ties and rows without a score count as one half.

    The AUC shows whether the scores separate the groups, but not by how much. For example, 100 against 101 BPM also
    gives an AUC of 1.0.
    """

    value: float
    interval: Interval
    n_positive: int
    n_negative: int
    n_without_score: int

    def __repr__(self) -> str:
        i = self.interval
        return f"AUC({self.value:.3f} [{i.low:.3f}, {i.high:.3f}], {self.n_positive} against {self.n_negative} rows)"


@guarded
@dataclass(frozen=True)
class RankTest:
    """The rank of an observed value among those of controls: p = (1 + k) / (n + 1).

    With n controls, p is at least 1 / (n + 1). With 19 controls, it can therefore reach .05, but no smaller value.
    """

    p: float
    observed: float
    n_controls: int
    n_as_extreme: int
    alternative: Alternative

    def __repr__(self) -> str:
        return (
            f"RankTest(p = {self.p:.3f}: {self.n_as_extreme} of {self.n_controls} controls as extreme as "
            f"{self.observed:.3g}, {self.alternative})"
        )


@guarded
@dataclass(frozen=True)
class Monotonicity:
    """Spearman's rank correlation of a measure with strength. The permutation p is exact for up to 7 strengths."""

    rho: float
    p: float
    n: int

    def __repr__(self) -> str:
        return f"Monotonicity(rho = {self.rho:+.2f}, p = {self.p:.3g}, {self.n} strengths)"


@guarded
@dataclass(frozen=True, eq=False)
class Means:
    """The mean over rows of every cell of a grid, with clustered errors, intervals and permutation p-values.

    All arrays have the grid's shape; `n` counts the rows that have a value. Standard errors and interval ends are NaN
    if there are fewer than two clusters. p is NaN if there were no permutations.

    A small p does not show that the mean is large. The cells of a grid share their rows, so their errors are
    correlated.
    """

    value: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_adjusted: np.ndarray
    n: np.ndarray
    n_clusters: int
    confidence: float

    @property
    def least_p(self) -> float:
        """The smallest p that sign flips of clusters can give. Flipping all clusters is as extreme as flipping none."""
        return min(1.0, 2.0 ** (1 - self.n_clusters))

    def __repr__(self) -> str:
        best = np.unravel_index(np.nanargmax(np.abs(self.value)), self.value.shape)
        p = f", adjusted p = {self.p_adjusted[best]:.3g}" if np.isfinite(self.p_adjusted[best]) else ""
        return (
            f"Means({self.value.size} cells; furthest from 0 is {self.value[best]:+.3g} "
            f"[{self.low[best]:+.3g}, {self.high[best]:+.3g}]{p})"
        )


@guarded
@takes("resampling", Resampling)
def effect(
    steered: ArrayLike,
    baseline: ArrayLike,
    prompts: ArrayLike,
    failed: ArrayLike | None = None,
    relative: bool = True,
    confidence: float = CONFIDENCE,
    n_bootstrap: int = 1000,
    seed: int = 0,
    *,
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> Effect:
    """Return the effect of steering on a measure, over clips paired by prompt and seed.

    Args:
        steered: the measure of each steered clip. NaN means that it could not be measured, which counts as a failure.
        baseline: the measure of the paired unsteered clip. Pairs with NaN here (or 0, if relative) are left out and
            counted in `n_left_out`.
        prompts: the prompt of each pair; the interval resamples prompts.
        failed: whether each steered clip failed (`audiolens.measure.failed`). A failed clip counts as an effect of 0.
        relative: whether to use steered / baseline - 1, which suits measures with a true zero (BPM, Hz). Use False for
            dBFS and mode.
        confidence: coverage of the interval.
        n_bootstrap: number of draws. With 0, the interval is NaN. This is enough for control directions, because only
            the value of their effect is used.
        seed: seed of the draws.
        resampling: a `Resampling` instead of `confidence`, `n_bootstrap` and `seed`.
    """
    checked_flags(relative=relative)
    after, before = _vector(steered, "steered"), _vector(baseline, "baseline")
    clusters = _clusters(prompts, len(after))
    lost = np.zeros(len(after), dtype=bool) if failed is None else _truth(failed, "failed")
    _same_length(steered=after, baseline=before, prompts=clusters, failed=lost)
    if relative and np.any(before < 0):
        raise InputError("baseline has negative values, so a relative change has no meaning: give relative=False.")
    usable = np.isfinite(before) & ((before > 0) | (not relative))
    if not usable.any():
        raise InputError("no pair has a usable baseline measure: give pairs whose baseline could be measured.")
    after, before, clusters, lost = after[usable], before[usable], clusters[usable], lost[usable]
    lost = lost | ~np.isfinite(after)
    change = np.where(lost, 0.0, after / before - 1 if relative else after - before)
    interval = bootstrap_median(change, clusters, confidence, n_bootstrap, seed)
    # A clip that did not fail can have a ratio of 0, whose logarithm would outweigh all others.
    mean = np.expm1(np.log(np.maximum(1 + change, _LEAST_RATIO)).mean()) if relative else change.mean()
    left_out = int((~usable).sum())
    return Effect(float(np.median(change)), interval, float(lost.mean()), len(change), left_out, relative, float(mean))


@guarded
@takes("resampling", Resampling)
def auc(
    scores: ArrayLike,
    labels: ArrayLike,
    prompts: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
    n_bootstrap: int = 1000,
    seed: int = 0,
    *,
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> AUC:
    """Return how well `scores` separate positive `labels` (True, 1) from negative ones, with an interval over prompts.

    A NaN score counts as a tie with every other score, because a clip without a tempo is neither fast nor slow. Without
    `prompts`, every row is its own cluster. Prompts are resampled within each label, so that every draw contains both
    labels. `confidence`, `n_bootstrap`, `seed` and `resampling` are as in `effect`.
    """
    values, truth = _vector(scores, "scores"), _truth(labels, "labels")
    clusters = _clusters(np.arange(len(values)) if prompts is None else prompts, len(values))
    _same_length(scores=values, labels=truth, prompts=clusters)
    if truth.all() or not truth.any():
        raise InputError(f"labels contain only {np.unique(truth).tolist()}: expected both True and False (or 1 and 0).")

    def area(index: Int[np.ndarray, " draw"]) -> float:
        return float(ranking.auc(values[index][truth[index]], values[index][~truth[index]]))

    interval = bootstrap(area, clusters, truth, confidence, n_bootstrap, seed)
    value = area(np.arange(len(values)))
    return AUC(value, interval, int(truth.sum()), int((~truth).sum()), int(np.isnan(values).sum()))


@guarded
@takes("resampling", Resampling)
def means(
    values: ArrayLike,
    clusters: ArrayLike | Sequence[str | None],
    confidence: float = CONFIDENCE,
    n_bootstrap: int = 1000,
    n_permutations: int = 0,
    seed: int = 0,
    *,
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> Means:
    """Return the mean over rows of every cell of an array "row ...", with clustered intervals. NaN values are left out.

    The interval is the same as that of `bootstrap` for a mean, but is computed for all cells in one matrix product.
    With `n_permutations`, the signs of whole clusters are also flipped to obtain a p-value, because without an effect
    both signs of a cluster's values are equally likely. `p_adjusted` compares the studentised mean of a cell with the
    largest studentised mean in the grid under the same flips (Westfall and Young 1993). This bounds the chance of any
    false claim in the whole grid. `resampling` is a `Resampling` that replaces `confidence`, `n_bootstrap`,
    `n_permutations` and `seed`.
    """
    array = numbers_of("values", values)
    groups = _clusters(clusters, len(array))
    checked_resampling(confidence, n_bootstrap)
    n_permutations = checked_count("n_permutations", n_permutations, least=0)
    shape, flat = array.shape[1:], array.reshape(len(array), -1)
    _, which = np.unique(groups, return_inverse=True)
    count = int(which.max()) + 1
    there = np.isfinite(flat)
    sums, sizes = np.zeros((2, count, flat.shape[1]))
    np.add.at(sums, which, np.where(there, flat, 0.0))
    np.add.at(sizes, which, there)
    n = sizes.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / n
        spread = np.sqrt(((sums - mean * sizes) ** 2).sum(0) * count / max(count - 1, 1)) / n
        spread[(n == 0) | (count < 2)] = np.nan
        rng = np.random.default_rng(checked_seed(seed))
        low = high = np.full(flat.shape[1], np.nan)
        if n_bootstrap and count > 1:
            weights = rng.multinomial(count, np.full(count, 1 / count), size=n_bootstrap)
            with warnings.catch_warnings():
                # A cell without values has no interval.
                warnings.simplefilter("ignore", RuntimeWarning)
                low, high = np.nanquantile((weights @ sums) / (weights @ sizes), levels(confidence, count), axis=0)
        root = np.sqrt((sums**2).sum(0))
        seen = np.where(root > 0, np.abs(sums.sum(0)) / root, 0.0)
        signs = rng.choice((-1.0, 1.0), (n_permutations, count))
        flipped = np.where(root > 0, np.abs(signs @ sums) / root, 0.0)
    most, seen = flipped.max(1, initial=0.0), seen - 1e-9
    p, adjusted = ((1 + (each >= seen).sum(0)) / (n_permutations + 1) for each in (flipped, most[:, None]))
    p, adjusted = (np.where((n == 0) | (n_permutations < 1), np.nan, each) for each in (p, adjusted))
    parts = (mean, spread, low, high, p, adjusted, n)
    return Means(*(part.reshape(shape) for part in parts), n_clusters=count, confidence=confidence)


@guarded
def rank_test(observed: float, controls: ArrayLike, alternative: Alternative = "greater") -> RankTest:
    """Return the p-value (1 + k) / (n + 1) of `observed` among n controls, k of which are at least as extreme.

    `"greater"` counts controls at least as large as `observed`, `"less"` counts those at least as small, and
    `"two-sided"` counts those at least as far from 0. For controls whose clips failed, give an effect of 0, not NaN.
    """
    values = _vector(controls, "controls")
    if not len(values):
        raise InputError("controls is empty: a rank needs at least one control (19 to reach p = .05).")
    observed = real_number(observed)
    if not np.isfinite(values).all() or not math.isfinite(observed):
        raise InputError("observed or controls contain NaN or infinity: give an effect of 0 for failed ones.")
    if alternative == "greater":
        k = int((values >= observed).sum())
    elif alternative == "less":
        k = int((values <= observed).sum())
    elif alternative == "two-sided":
        k = int((np.abs(values) >= abs(observed)).sum())
    else:
        raise InputError(f"alternative={shown(alternative)}: expected 'greater', 'less' or 'two-sided'.")
    return RankTest((1 + k) / (len(values) + 1), float(observed), len(values), k, alternative)


@guarded
def spearman(strengths: ArrayLike, values: ArrayLike, seed: int = 0) -> Monotonicity:
    """Return Spearman's rho between a measure and strength: near 1 if the measure rises, and near -1 if it falls.

    Both arguments have one entry per strength. `values` can be medians, for example. NaN values are left out. rho is
    NaN if fewer than three values remain or if they do not vary.
    """
    x, y = _vector(strengths, "strengths"), _vector(values, "values")
    _same_length(strengths=x, values=y)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = stats.rankdata(x[keep]), stats.rankdata(y[keep])
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Monotonicity(float("nan"), float("nan"), len(x))
    x, y = x - x.mean(), y - y.mean()
    test = stats.permutation_test(
        (y,),
        lambda shuffled, axis: (x * shuffled).sum(axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(checked_seed(seed)),
    )
    return Monotonicity(float(test.statistic / np.sqrt((x**2).sum() * (y**2).sum())), float(test.pvalue), len(x))


@guarded
def correct(p_values: ArrayLike, method: Literal["holm", "bh"] = "holm") -> Float[np.ndarray, " test"]:
    """Return p-values adjusted for multiple tests, such as one per layer, to compare with the significance level.

    `"holm"` bounds the chance of any false claim (Holm 1979). `"bh"` bounds the expected share of false claims among
    all claims (Benjamini and Hochberg 1995), for independent or positively dependent tests.
    """
    p = _vector(p_values, "p_values")
    if not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise InputError("p_values is empty, or has NaN or values outside [0, 1]: leave out tests that were not run.")
    if method == "bh":
        return stats.false_discovery_control(p, method="bh")
    if method != "holm":
        raise InputError(f"method={shown(method)}: expected 'holm' or 'bh'.")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return adjusted


def _vector(values: ArrayLike, name: str) -> Float[np.ndarray, " row"]:
    array = numbers_of(name, values)
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}: expected one number per row.")
    return array


def _truth(values: ArrayLike, name: str) -> Bool[np.ndarray, " row"]:
    """Check that values are True and False, or 1 and 0. Otherwise every non-empty string would count as true."""
    refuse_masked(name, values)
    array = as_array(name, values)
    if array.dtype == bool and array.ndim == 1:
        return array
    listed = array.astype(object).ravel().tolist()
    if array.ndim != 1 or not all(isinstance(one, bool | np.bool_ | Real) and one in (0, 1) for one in listed):
        found = list(dict.fromkeys(listed))[:5]
        raise InputError(
            f"{name} contains {found} in shape {array.shape}: expected True or False (or 1 and 0) for each row."
        )
    return array.astype(bool)


def _clusters(prompts: ArrayLike | Sequence[str | None], n: int) -> np.ndarray:
    refuse_masked("prompts", prompts)
    array = as_array("prompts", prompts)
    if array.dtype == object:  # rows without a prompt (None) form a single cluster
        array = array.astype(str)
    if array.ndim != 1 or len(array) != n:
        raise InputError(f"prompts has shape {array.shape}: expected one prompt for each of the {n} rows.")
    return array


def _same_length(**arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"lengths differ: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
