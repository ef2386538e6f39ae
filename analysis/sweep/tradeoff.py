"""Compare effect with loss, to find how strongly a direction can be applied and where it has the largest effect.

Like `dose`, this module uses the effects of a sweep's conditions. A loss is a column that grows as clips get worse,
such as `failed` (the share of failed clips), `drift`, or a distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.statistics import MOST_FAILED
from analysis.sweep.dose import DoseResponse, change, place_of
from analysis.sweep.factorial import PLACE, spoken
from audiolens.checks import checked_amount, checked_text, shown
from audiolens.door import guarded
from audiolens.errors import InputError


@guarded
@dataclass(frozen=True, eq=False)
class LayerMap:
    """The effect at every layer and strength of one strategy.

    Attributes:
        effect, failed: the effect and the share of failed clips, "layer strength". Strength 0 is the baseline.
        layers, strengths: values along the two axes.

    The map does not show where a concept is computed, because steering works wherever later blocks read the concept.
    Cells have no intervals, and the largest effect of many is partly due to chance.
    """

    concept: str
    measured: str
    strategy: str
    branch: str
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    effect: Float[np.ndarray, "layer strength"]
    failed: Float[np.ndarray, "layer strength"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cell: `layer`, `strength`, `effect`, `failed`."""
        cells = [(layer, strength) for layer in self.layers for strength in self.strengths]
        frame = pd.DataFrame(cells, columns=["layer", "strength"])
        return frame.assign(effect=self.effect.ravel(), failed=self.failed.ravel())

    @drawable
    def plot(self) -> Any:
        """Draw a heat map, with a cross on cells where too many clips failed (matplotlib figure)."""
        from analysis.sweep import plots

        return plots.layer_map(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.sweep import screen

        return screen.layer_map(self)

    def __repr__(self) -> str:
        sound = np.where(self.failed <= MOST_FAILED, self.effect, np.nan)
        if not np.isfinite(sound).any():
            return f"LayerMap({self.concept}, {self.strategy}: too many clips failed in every cell)"
        extremes = []
        for cell in (np.nanargmin(sound), np.nanargmax(sound)):
            layer, strength = np.unravel_index(cell, sound.shape)
            extremes.append(f"{change(float(sound[layer, strength]), self.measured)} at layer {self.layers[layer]}, "
                        f"strength {self.strengths[strength]:+g}")  # fmt: skip
        return f"LayerMap({self.concept} on {self.measured}, {self.strategy}: from {extremes[0]}, to {extremes[1]})"


@guarded
@dataclass(frozen=True, eq=False)
class Limits:
    """How strongly a direction can be added at each place (strategy and layer) before the loss exceeds a bound.

    `table` has one row per place and sign. `strength` is the largest strength of that sign up to which the loss stays
    within the bound, or 0 if the loss at the weakest strength already exceeds it. The row also has the `effect`, `low`,
    `high` and loss at that strength. `open` is true if no tested strength exceeded the bound, so the true limit is
    higher.

    A share of failed clips that is estimated from n clips is uncertain by about 1 / sqrt(n), so a limit can be off by
    one tested strength.
    """

    concept: str
    measured: str
    loss: str
    bound: float
    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @drawable
    def plot(self) -> Any:
        """Draw the range of strengths within the bound at every place (matplotlib figure)."""
        from analysis.sweep import plots

        return plots.limits(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.sweep import screen

        return screen.limits(self)

    def __repr__(self) -> str:
        described = []
        for sign in (-1, 1):
            mine = self.table[self.table["sign"] == sign]
            if len(mine):
                best = mine.iloc[int(np.nanargmax(np.nan_to_num(sign * mine["effect"].to_numpy(), nan=-np.inf)))]
                described.append(f"{best['strength']:+g} at {spoken(best)} ({change(best['effect'], self.measured)})")
        return f"Limits({self.concept}, {self.loss} at most {self.bound:g}: best {' and '.join(described)})"


@guarded
@dataclass(frozen=True, eq=False)
class Strategies:
    """The largest effect of each strategy towards each pole, among strengths whose loss stays within a bound.

    Each row is the best of `candidates` layers, selected on the same clips. Every strategy therefore looks better than
    it is, and this bias grows with the number of candidates.
    """

    concept: str
    measured: str
    loss: str
    bound: float
    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @drawable
    def plot(self) -> Any:
        """Draw the largest effect of every strategy, with intervals (matplotlib figure)."""
        from analysis.sweep import plots

        return plots.strategies(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.sweep import screen

        return screen.strategies(self)

    def __repr__(self) -> str:
        described = [f"{spoken(row)} at {row['strength']:+g} {change(row['effect'], self.measured)}"
                for _, row in self.table.iterrows()]  # fmt: skip
        return (
            f"Strategies({self.concept} on {self.measured}, {self.loss} at most {self.bound:g}: {'; '.join(described)})"
        )


@guarded
@dataclass(frozen=True, eq=False)
class Front:
    """Every steered condition by its gain (the effect towards its own pole) and its loss.

    `table` has one row per condition, with its place, `strength`, `sign`, `gain`, loss and `best`. `best` is true if
    the condition is Pareto-optimal, which means that no other condition of that sign has more gain without more loss,
    or less loss without less gain.

    Which conditions are on the front depends on these clips. With other clips, neighbours with overlapping intervals
    might swap places.
    """

    concept: str
    measured: str
    loss: str
    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @drawable
    def plot(self) -> Any:
        """Draw gain against loss, with one panel per sign and the front as a line (matplotlib figure)."""
        from analysis.sweep import plots

        return plots.front(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.sweep import screen

        return screen.front(self)

    def __repr__(self) -> str:
        best = self.table[self.table["best"]]
        ends = [mine.sort_values("gain").iloc[-1] for _, mine in best.groupby("sign")]
        far = ", ".join(f"{change(row['effect'], self.measured)} at {self.loss} {row[self.loss]:.2g}" for row in ends)
        return f"Front({self.concept} on {self.measured}: {len(best)} of {len(self.table)} conditions; furthest {far})"


@guarded
def layer_map(dose: DoseResponse, strategy: str | None = None, branch: str | None = None) -> LayerMap:
    """Return the layer x strength map of a strategy that was swept over layers (default: the first such strategy).

    Raises:
        InputError: if this strategy was not swept over layers.
    """
    mine = dose.steered[dose.steered["layer"].notna()]
    for name, value in (("strategy", strategy), ("branch", branch)):
        if value is not None:
            checked_text(name, value)
        mine = mine[mine[name] == (mine[name].iloc[0] if value is None and len(mine) else value)]
    if not len(mine):
        known = dose.steered.loc[dose.steered["layer"].notna(), "strategy"].unique()
        raise InputError(f"strategy={shown(strategy)}, branch={shown(branch)}: not swept over layers. Choose from: "
                         f"{', '.join(map(str, known)) or 'none'}.")  # fmt: skip
    layers = tuple(sorted(int(layer) for layer in mine["layer"].unique()))
    strengths = tuple(sorted({0.0, *mine["strength"]}))
    grids = []
    for column in ("effect", "failed"):
        wide = mine.pivot_table(index="layer", columns="strength", values=column, dropna=False)
        wide = wide.reindex(index=list(layers), columns=list(strengths))
        grid = wide.to_numpy(dtype=float, copy=True)
        grid[:, strengths.index(0.0)] = 0.0
        grids.append(grid)
    first = mine.iloc[0]
    return LayerMap(dose.concept, dose.measured, first["strategy"], first["branch"], layers, strengths, *grids)


@guarded
def limits(dose: DoseResponse, bound: float = MOST_FAILED, loss: str = "failed") -> Limits:
    """Return, for every place and sign, the largest strength up to which the loss stays within a bound."""
    steered = _with_loss(dose, loss)
    rows = []
    for group in _rising(steered):
        within = _within(group, bound, loss)
        found = group[within].iloc[-1] if within.any() else group.iloc[0]
        chosen = {name: found[name] if within.any() else float("nan") for name in ("effect", "low", "high", loss)}
        strength = float(found["strength"]) if within.any() else 0.0
        sign = int(np.sign(group["strength"].iloc[0]))
        rows.append({**place_of(found), "sign": sign, "strength": strength, **chosen, "open": bool(within.all())})
    return Limits(dose.concept, dose.measured, loss, bound, pd.DataFrame(rows))


@guarded
def strategies(dose: DoseResponse, bound: float = MOST_FAILED, loss: str = "failed") -> Strategies:
    """Return each strategy's and branch's largest effect towards each pole at its best layer, with a bound on the loss.

    All strengths up to the limit are compared, because an effect can reverse before clips fail.
    """
    steered = _with_loss(dose, loss)
    sound = pd.concat([group[_within(group, bound, loss)] for group in _rising(steered)])
    rows = []
    for keys, group in steered.groupby(["strategy", "branch", np.sign(steered["strength"])], sort=False):
        strategy, branch, sign = cast(tuple[Any, Any, Any], keys)
        reached = sound.loc[sound.index.intersection(group.index)].dropna(subset="effect")
        if len(reached):
            best = reached.loc[(sign * reached["effect"]).idxmax()]
            chosen = {**place_of(best), **{name: best[name] for name in ("strength", "effect", "low", "high", loss)}}
        else:
            nothing = dict.fromkeys(("layer", "effect", "low", "high", loss), float("nan"))
            chosen = {**place_of(group.iloc[0]), "strength": 0.0, **nothing}
        candidates = len(group[list(PLACE)].drop_duplicates())
        rows.append({**chosen, "strategy": strategy, "branch": branch, "sign": int(sign), "candidates": candidates})
    return Strategies(dose.concept, dose.measured, loss, bound, pd.DataFrame(rows))


@guarded
def front(dose: DoseResponse, loss: str = "failed") -> Front:
    """Return the Pareto front of gain and loss over the steered conditions."""
    steered = _with_loss(dose, loss)
    signs = np.sign(steered["strength"]).astype(int)
    table = steered[[*PLACE, "strength", "effect", "low", "high"]].assign(
        sign=signs, gain=signs * steered["effect"], **{loss: steered[loss]}
    )
    table = table[table["gain"].notna()].reset_index(drop=True)
    best = np.zeros(len(table), dtype=bool)
    for sign in table["sign"].unique():
        mine = np.flatnonzero(table["sign"] == sign)
        best[mine] = _undominated(table["gain"].to_numpy()[mine], table[loss].to_numpy(dtype=float)[mine])
    return Front(dose.concept, dose.measured, loss, table.assign(best=best))


def _undominated(gain: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Return a mask of the points that no other point dominates.

    A point dominates another if it is at least as good in both respects and better in one.
    """
    no_worse = (gain[None] >= gain[:, None]) & (loss[None] <= loss[:, None])
    better = (gain[None] > gain[:, None]) | (loss[None] < loss[:, None])
    return np.logical_not(np.any(no_worse & better, axis=1))


def _rising(steered: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Return the rows of each place and sign, in order of increasing |strength|."""
    for _, group in steered.groupby([*PLACE, np.sign(steered["strength"])], dropna=False, sort=False):
        yield group.sort_values("strength", key=abs)


def _within(rising: pd.DataFrame, bound: float, loss: str) -> pd.Series:
    """Return a mask of the rows whose loss, and the loss at all weaker strengths, stays within the bound."""
    bound = checked_amount("bound", bound)
    return rising[loss].fillna(np.inf).cummax() <= bound


def _with_loss(dose: DoseResponse, loss: str) -> pd.DataFrame:
    steered = dose.steered.reset_index(drop=True)
    if loss not in steered or not pd.api.types.is_numeric_dtype(steered[loss]):
        labels = {
            *PLACE,
            "strength",
            "draw",
            "cosine",
            "effect",
            "low",
            "high",
            "mean_change",
            "median",
            "left_out",
            "clips",
        }
        numbers = (name for name in steered.select_dtypes("number") if not str(name).startswith(("p_", "n_")))
        known = [str(name) for name in numbers if name not in labels]
        raise InputError(f"loss={shown(loss)}: not measured in this sweep. Choose from: {', '.join(known)}.")
    return steered
