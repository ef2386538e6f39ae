"""Compute the AUC between two groups of values, for prompts, directions, probes and sweeps."""

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks along the last axis, starting at 1. Equal values all get the mean of their ranks."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1))


def area(rank_sums: np.ndarray, n_positive: int, n_negative: int) -> np.ndarray:
    """Return the AUC, given the sum of the positive group's ranks (Mann and Whitney 1947)."""
    return (rank_sums - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def auc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the probability that a value of `positive` exceeds a value of `negative`, along the last axis.

    Ties and comparisons with NaN count as one half. The result is NaN if either group is empty.
    """
    positive, negative = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    n, m = positive.shape[-1], negative.shape[-1]
    if not n or not m:
        return np.full(positive.shape[:-1], np.nan)
    missing = np.isnan(positive).any(-1) | np.isnan(negative).any(-1)
    if missing.any():
        pairs = zip(positive.reshape(-1, n), negative.reshape(-1, m), strict=True)
        return np.array([_with_missing(*pair) for pair in pairs]).reshape(missing.shape)
    return area(ranks(np.concatenate([positive, negative], axis=-1))[..., :n].sum(-1), n, m)


def _with_missing(positive: np.ndarray, negative: np.ndarray) -> float:
    seen = positive[~np.isnan(positive)], negative[~np.isnan(negative)]
    pairs, compared = len(positive) * len(negative), len(seen[0]) * len(seen[1])
    won = float(auc(*seen)) * compared if compared else 0.0
    return (won + (pairs - compared) / 2) / pairs
