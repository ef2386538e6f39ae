"""Numbers with intervals and standard errors over prompts, and the files that keep them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.resampling import interval_of, resampled
from analysis.statistics import effect
from analysis.sweep.concept_measures import is_ratio, unit_of_change
from analysis.sweep.response import KEYS

DRAWS = 1000
_LEAST_CHANGE = -0.99
_LOGARITHMS: Mapping[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "ratio": (math.log1p, math.expm1),
    "times": (math.log, math.exp),
}
"""For units whose values are pooled as logarithms: the logarithm and its inverse."""


@dataclass(frozen=True)
class Estimate:
    """A number measured on one model.

    Attributes:
        value, low, high: the number, and its interval over prompts (NaN if there is none).
        stderr: the standard error on the scale of `scaled`.
        unit: "ratio" (steered / unsteered - 1), "times" (a multiple), or a unit in which values are subtracted.
        failed: the share of clips that failed.
        note: what the number does not say, such as its place.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    stderr: float = math.nan
    unit: str = "ratio"
    failed: float = math.nan
    note: str = ""

    @property
    def scaled(self) -> float:
        """The value on the scale on which models are pooled: a logarithm, if it is a ratio."""
        return self.to_scale(self.value)

    def to_scale(self, value: float) -> float:
        if self.unit not in _LOGARITHMS:
            return value
        least = _LEAST_CHANGE if self.unit == "ratio" else 1 + _LEAST_CHANGE
        return math.nan if math.isnan(value) else _LOGARITHMS[self.unit][0](max(value, least))

    def from_scale(self, value: float) -> float:
        """The value in this estimate's unit."""
        return _LOGARITHMS[self.unit][1](value) if self.unit in _LOGARITHMS else value

    def as_dict(self) -> dict[str, Any]:
        """The fields that are known, as JSON can hold them."""
        return {name: value for name, value in asdict(self).items() if value == value and value != ""}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Estimate:
        """The estimate that `as_dict` described."""
        known = {field.name for field in fields(cls)}
        return cls(**{"value": math.nan, **{name: value for name, value in found.items() if name in known}})


@dataclass(frozen=True, eq=False)
class Changes:
    """The change of a measure in every pair of clips, as a log ratio or a difference; 0 where the clip failed."""

    values: Float[np.ndarray, " pair"]
    prompts: np.ndarray
    relative: bool
    unit: str

    def span(self, down: Changes) -> Changes:
        """How far apart the clips of the two poles are: these changes minus those towards the other pole."""
        return replace(self, values=self.values - down.values)

    def minus(self, other: Changes, sign: float = 1.0) -> Estimate:
        """The median difference between two conditions of the same clips, times `sign`."""
        found = sign * (self.values - other.values)
        return drawn(lambda rows: float(np.median(found[rows])), self.prompts, self.unit)


def changes(after: pd.DataFrame, before: pd.DataFrame, measure: str) -> Changes:
    """The changes of a measure from the clips `before` to the clips `after`, paired by prompt and seed."""
    own, mine = _paired(after, before)
    relative = is_ratio(measure)
    start, end = own[measure].to_numpy(float), mine[measure].to_numpy(float)
    usable = np.isfinite(start) & ((start > 0) | (not relative))
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(np.maximum(end / start, 1 + _LEAST_CHANGE)) if relative else end - start
    change = np.where(mine["failed"].to_numpy(bool) | ~np.isfinite(change), 0.0, change)
    return Changes(change[usable], mine["prompt"].to_numpy()[usable], relative, unit_of_change(measure))


def steered(after: pd.DataFrame, before: pd.DataFrame, measure: str) -> Estimate:
    """The median effect as every study reports it (`statistics.effect`), with the standard error that pooling needs.

    The value is NaN if no clip of `before` can be measured.
    """
    own, mine = _paired(after, before)
    unit, found = unit_of_change(measure), changes(after, before, measure)
    if not len(found.values):
        return Estimate(math.nan, unit=unit, failed=float(mine["failed"].mean()))
    told = effect(mine[measure], own[measure], mine["prompt"], mine["failed"], is_ratio(measure), n_bootstrap=DRAWS)
    spread = drawn(lambda rows: float(np.median(found.values[rows])), found.prompts, unit)
    return Estimate(told.value, told.interval.low, told.interval.high, spread.stderr, unit, told.failed_share)


def mean(values: Float[np.ndarray, " clip"], prompts: np.ndarray, unit: str) -> Estimate:
    """The mean over clips."""
    return drawn(lambda rows: float(values[rows].mean()), prompts, unit)


def quotient(above: Float[np.ndarray, " clip"], below: Float[np.ndarray, " clip"], prompts: np.ndarray) -> Estimate:
    """The ratio of two means over the same clips, in multiples; NaN if the second mean is 0."""
    if not below.mean() > 0 or not above.mean() > 0:
        return Estimate(math.nan, unit="times")
    least = np.finfo(float).tiny
    return drawn(
        lambda rows: float(np.log(max(above[rows].mean(), least) / max(below[rows].mean(), least))), prompts, "times"
    )


def drawn(statistic: Callable[[Int[np.ndarray, " draw"]], float], prompts: np.ndarray, unit: str) -> Estimate:
    """A statistic of rows, on the pooled scale of its unit, with a bootstrap over prompts; NaN without rows."""
    if not len(prompts):
        return Estimate(math.nan, unit=unit)
    draws = resampled(prompts, DRAWS)
    again = np.array([statistic(rows) for rows in draws])
    found, n = Estimate(math.nan, unit=unit), len(np.unique(prompts))
    value = statistic(np.arange(len(prompts)))
    if not len(again):
        return Estimate(found.from_scale(value), unit=unit)
    ends = interval_of(again, n)
    # Resampled means of n clusters vary (n - 1) / n times as much as means of new clusters.
    stderr = float(again.std() * math.sqrt(n / (n - 1)))
    return Estimate(*(found.from_scale(one) for one in (value, ends.low, ends.high)), stderr=stderr, unit=unit)


def _paired(after: pd.DataFrame, before: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of both tables, in the order of `after`."""
    own = before.set_index(KEYS).loc[pd.MultiIndex.from_frame(after[KEYS])]
    return own.reset_index(), after.reset_index(drop=True)
