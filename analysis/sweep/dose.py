"""Compute a direction's effect at each strength (the dose-response), with controls, prompted clips and cross-effects.

This module uses the effects of a sweep's conditions (`response.effects`), whose labels are kind, concept, place and
strength. A place is where a direction is added. The columns in `factorial.PLACE` identify a place. The measure is
assumed to rise towards the concept's positive pole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.statistics import MOST_FAILED, correct, spearman
from analysis.sweep.conditions import BASELINE
from analysis.sweep.controls import KINDS
from analysis.sweep.factorial import PLACE, spoken
from analysis.sweep.ranks import ranked
from analysis.sweep.response import CONTROLS, is_ratio, unit_of_change
from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError


@guarded
@dataclass(frozen=True, eq=False)
class DoseResponse:
    """The effect of steering at each place and strength of a sweep.

    Attributes:
        concept, measured: the concept that was steered, and the measure of its effect.
        table: one row per condition, with its labels, `effect`, `low`, `high`, `median`, `failed`, and further losses
            if they were measured (`drift`, distances). Steered conditions have more columns. `p_random`, `p_shuffled`
            (balanced shuffles) and `p_other` (other concepts) are p-values from the rank among controls of that kind at
            the same place and strength, towards the pole of the strength's sign (NaN without controls). `p_controls` is
            the p-value from the rank among all controls. `n_random`, `n_shuffled`, `n_other` and `n_controls` are the
            numbers of controls. `rivals` names the other concepts whose directions have at least as large an effect.
            `p_corrected` is `p_controls` corrected for testing several layers (Holm, over the layers of one strategy,
            branch and strength).
        monotonicity: one row per place, with Spearman's `rho` between median and strength, its p-value `p`, and the
            number `n` of strengths.

    A dose-response does not show which layer is best. The place with the widest span of effects was selected from many
    places on the same clips, so its estimate is optimistic. Choose a place on these prompts, and report results on
    others. With fewer than 19 controls, p cannot reach .05.
    """

    concept: str
    measured: str
    table: pd.DataFrame
    monotonicity: pd.DataFrame

    @property
    def steered(self) -> pd.DataFrame:
        return self.table[self.table["kind"] == "steered"]

    @property
    def poles(self) -> tuple[str, str]:
        """The names of the positive and the negative pole, if the sweep has prompted clips."""
        named = self.table.loc[self.table["kind"] == "prompted", "pole"].tolist()
        return (named[0], named[1]) if len(named) == 2 else ("positive", "negative")

    def widest(self, **where: Any) -> pd.DataFrame:
        """Return the steered rows of the place with the widest span of effects.

        The span is the distance from the smallest effect of a negative strength to the largest effect of a positive
        strength, excluding strengths at which too many clips failed.
        """
        return widest(self.steered, self.measured, **where)

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @drawable
    def plot(self) -> Any:
        """Draw each strategy at its place with the widest span, with controls and prompted clips (matplotlib)."""
        from analysis.figures import plots
        from analysis.sweep.plots import in_units

        return in_units(plots.dose_response(self._shown, self.measured, self.poles), self.measured)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.figures import screen
        from analysis.sweep.screen import in_units

        return in_units(screen.dose_response(self._shown, self.measured, self.poles), self.measured)

    @property
    def _shown(self) -> pd.DataFrame:
        parts = [self.table[self.table["kind"].isin([BASELINE, "prompted"])]]
        for strategy in self.steered["strategy"].unique():
            place = place_of(self.widest(strategy=strategy).iloc[0])
            kinds = self.table["kind"].isin(["steered", *CONTROLS])
            parts.append(self.table[at_place(self.table, place) & kinds])
        return pd.concat(parts, ignore_index=True)

    def __repr__(self) -> str:
        best = self.widest()
        text = ", ".join(
            f"{row.strength:+g}: {change(row.effect, self.measured)} [{change(row.low, self.measured)}, "
            f"{change(row.high, self.measured)}]"
            for row in (best.iloc[0], best.iloc[-1])
        )
        n_places = len(self.monotonicity)
        of = "" if n_places == 1 else f", the widest span of {n_places} places"
        rho = self.monotonicity[at_place(self.monotonicity, place_of(best.iloc[0]))]["rho"].iloc[0]
        return f"DoseResponse({self.concept} on {self.measured}, {spoken(best.iloc[0])}{of}: {text}; rho {rho:+.2f})"


@guarded
@dataclass(frozen=True, eq=False)
class CrossEffects:
    """The effect of steering along one concept on every measure, at one place.

    `table` has one row per measure and strength, with `effect`, `low`, `high`, `unit` ("ratio", or the unit of the
    difference) and `failed`. The table does not show that an effect is specific to the direction, because any added
    vector can change a measure (see the controls of `DoseResponse`). With several measures, some intervals exclude zero
    by chance.
    """

    concept: str
    place: Mapping[str, Any]
    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @drawable
    def plot(self) -> Any:
        """Draw the change in every measure (matplotlib figure). Differences (in loudness) have a separate panel."""
        from analysis.sweep import plots

        return plots.cross_effects(self.table)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.sweep import screen

        return screen.cross_effects(self.table)

    def __repr__(self) -> str:
        largest = self.table[self.table["strength"] == self.table["strength"].max()]
        moved = largest[(largest["low"] > 0) | (largest["high"] < 0)]
        text = ", ".join(f"{row.measure} {change(row.effect, row.measure)}" for row in moved.itertuples())
        return f"CrossEffects({self.concept}, {spoken(self.place)}, {largest['strength'].iloc[0]:+g}: {text or 'none'})"


def dose_response(effects: pd.DataFrame, concept: str, measured: str) -> DoseResponse:
    """Return the dose-response of one concept, with ranks, corrected p-values and monotonicity.

    Raises:
        InputError: if the concept was not steered.
    """
    mine = effects[(effects["concept"] == concept) | (effects["kind"] == BASELINE)].reset_index(drop=True)
    steered = mine["kind"] == "steered"
    if not steered.any():
        known = effects.loc[effects["kind"] == "steered", "concept"].unique()
        raise InputError(f"{shown(concept)} was not steered. Steered concepts: {', '.join(map(str, known))}.")
    at = mine.groupby([*PLACE, mine["strength"].abs().rename("size")], dropna=False).ngroup()
    controls = {key: group for key, group in mine[mine["kind"].isin([*KINDS])].groupby(at)}
    columns = []
    for place, row in zip(at[steered], mine[steered].to_dict("records"), strict=True):
        found = ranked(row["mean_change"], row["strength"], controls.get(place, mine.iloc[:0]))
        columns.append({**found.columns(), "rivals": ", ".join(found.rivals)})
    table = mine.join(pd.DataFrame(columns, index=mine.index[steered]))
    counts = [name for name in table.columns if name.startswith("n_")]
    table[counts] = table[counts].fillna(0).astype(int)
    table["p_corrected"] = np.nan
    family = [name for name in PLACE if name != "layer"]
    tested = table[steered & table["p_controls"].notna()]
    for _, group in tested.groupby([*family, "strength"], dropna=False):
        table.loc[group.index, "p_corrected"] = correct(group["p_controls"])
    base = float(table.loc[table["kind"] == BASELINE, "median"].iloc[0])
    rising_at = []
    for _, group in table[steered].groupby(list(PLACE), dropna=False, sort=False):
        rising = spearman([*group["strength"], 0.0], [*group["median"], base])
        rising_at.append({**place_of(group.iloc[0]), "rho": rising.rho, "p": rising.p, "n": rising.n})
    return DoseResponse(concept, measured, table, pd.DataFrame(rising_at))


def widest(steered: pd.DataFrame, measured: str, **where: Any) -> pd.DataFrame:
    """Return the rows of the place with the widest span of effects (`DoseResponse.widest`), in order of strength."""
    groups = [group for _, group in steered[at_place(steered, where)].groupby(list(PLACE), dropna=False, sort=False)]
    if not groups:
        raise InputError(f"no condition was steered at {where}: choose a place that was swept.")
    return max(groups, key=lambda group: _span(group, measured)).sort_values("strength")


def change(value: float, measured: str) -> str:
    """Return an effect as text, either a signed percentage or a signed difference with its unit."""
    if not np.isfinite(value):
        return "none measured"
    return f"{value:+.0%}" if is_ratio(measured) else f"{value:+.2g} {unit_of_change(measured)}".strip()


def _span(group: pd.DataFrame, measured: str) -> float:
    sound = group[(group["failed"] <= MOST_FAILED) & group["effect"].notna()]
    up = sound.loc[sound["strength"] > 0, "effect"].max()
    down = sound.loc[sound["strength"] < 0, "effect"].min()
    up, down = (0.0 if value != value else float(value) for value in (up, down))
    return np.log((1 + up) / max(1 + down, 1e-6)) if is_ratio(measured) else up - down


def place_of(row: Any) -> dict[str, Any]:
    """Return the labels of a row that identify where a direction is added."""
    return {name: row[name] for name in PLACE}


def at_place(table: pd.DataFrame, place: Mapping[str, Any]) -> pd.Series:
    """Return a mask of the rows at a place.

    Labels that are missing in `place` (NaN, None) must be missing in the row too.
    """
    chosen = pd.Series(True, index=table.index)
    for name, value in place.items():
        if name not in PLACE or not isinstance(value, str | int | float | np.number | tuple | None):
            raise InputError(f"{name}={shown(value)}: a place has {', '.join(PLACE)}, each a name or a number.")
        open_ = value is None or value != value
        if open_:
            chosen &= table[name].isna()
        else:
            # A column of a million rows has few values, each of which is compared once.
            codes, found = pd.factorize(table[name])
            chosen &= np.isin(codes, [code for code, one in enumerate(found) if one == value])
    return chosen
