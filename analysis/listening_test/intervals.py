"""Means of answers over listeners and prompts, with intervals for other listeners, other prompts, and both.

A test draws listeners and prompts, so its result varies with both. The interval for both resamples listeners and
prompts independently, and weighs an answer by the product of how often its listener and its prompt were drawn (Owen
2007, "The pigeonhole bootstrap"). As in all intervals here, the percentiles are widened for few listeners or prompts
(`analysis.resampling.levels`).

The pigeonhole bootstrap overstates the variance of what was observed, but nothing can be resampled from answers that do
not differ: its interval then has no width, however few they are. `_bounded` takes its place.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from analysis.resampling import levels


@dataclass(frozen=True)
class Draws:
    """How often each listener and each prompt was drawn, shared by all statistics of a test."""

    listeners: Int[np.ndarray, "draw listener"]
    prompts: Int[np.ndarray, "draw prompt"]
    confidence: float

    @classmethod
    def of(cls, listeners: int, prompts: int, n_bootstrap: int, confidence: float, seed: int) -> Draws:
        """Draw listeners and prompts with replacement."""
        rng = np.random.default_rng(seed)
        drawn = [rng.multinomial(n, np.full(n, 1 / n), size=n_bootstrap) for n in (listeners, prompts)]
        return cls(drawn[0], drawn[1], confidence)

    def both(self, sums: Float[np.ndarray, "listener prompt"]) -> Float[np.ndarray, " draw"]:
        """Return the weighted total of every draw."""
        return ((self.listeners @ sums) * self.prompts).sum(1)

    def ends(
        self, values: Float[np.ndarray, "draw ..."], clusters: int, *, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the interval of values over draws; NaN if there are fewer than two clusters.

        With `exact`, ends are values of draws instead of lying between two, because infinite values have no between.
        """
        if clusters < 2 or not len(values):
            empty = np.full(values.shape[1:], np.nan)
            return empty, empty
        with warnings.catch_warnings():
            # A statistic that no draw has is NaN.
            warnings.simplefilter("ignore", RuntimeWarning)
            method = "inverted_cdf" if exact else "linear"
            low, high = np.nanquantile(values, levels(self.confidence, clusters), axis=0, method=method)
        return low, high


def totals(
    answers: pd.DataFrame, listeners: list[str], prompts: list[str], value: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of answers, as arrays "listener prompt"."""
    place = pd.MultiIndex.from_product([listeners, prompts], names=["listener", "prompt"])
    grouped = answers.groupby(["listener", "prompt"])[value].agg(["sum", "size"]).reindex(place, fill_value=0)
    shape = (len(listeners), len(prompts))
    return grouped["sum"].to_numpy(float).reshape(shape), grouped["size"].to_numpy(float).reshape(shape)


def mean_of(
    sums: np.ndarray, counts: np.ndarray, draws: Draws, ends: tuple[float, float] = (0.0, 1.0)
) -> dict[str, float]:
    """Return the mean answer, its intervals, and the numbers of answers, listeners and prompts.

    `ends` are the lowest and the highest possible answer.
    """
    n_listeners, n_prompts = (int((counts.sum(axis) > 0).sum()) for axis in (1, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        both = draws.both(sums) / draws.both(counts)
        listener = (draws.listeners @ sums.sum(1)) / (draws.listeners @ counts.sum(1))
        prompt = (draws.prompts @ sums.sum(0)) / (draws.prompts @ counts.sum(0))
    found = {"mean": float(sums.sum() / counts.sum())}
    for name, values, clusters in (
        ("", both, min(n_listeners, n_prompts)), ("listener_", listener, n_listeners), ("prompt_", prompt, n_prompts),
    ):  # fmt: skip
        low, high = draws.ends(values, clusters)
        if flat(low, high):
            low, high = _bounded(found["mean"], clusters, draws.confidence, ends)
        found |= {f"{name}low": float(low), f"{name}high": float(high)}
    return {**found, "answers": int(counts.sum()), "listeners": n_listeners, "prompts": n_prompts}


def flat(low: np.ndarray | float, high: np.ndarray | float) -> Any:
    """Return whether an interval has no width, up to rounding."""
    return np.isclose(low, high, rtol=0, atol=1e-9)


def _bounded(mean: float, clusters: int, confidence: float, ends: tuple[float, float]) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson (1934) for a mean of so many answers between two ends.

    A mean of answers between 0 and 1 varies at most as much as a share of answers that are 0 or 1. With the smaller of
    the numbers of listeners and prompts, this also bounds the variance over both.
    """
    lowest, highest = ends
    chosen = clusters * (mean - lowest) / (highest - lowest)
    outside = (1 - float(confidence)) / 2
    # The quantiles are NaN where the share is 0 or 1, and the interval ends there.
    low = np.nan_to_num(stats.beta.ppf(outside, chosen, clusters - chosen + 1), nan=0.0)
    high = np.nan_to_num(stats.beta.ppf(1 - outside, chosen + 1, clusters - chosen), nan=1.0)
    return float(lowest + (highest - lowest) * low), float(lowest + (highest - lowest) * high)
