"""The result of a complete or unfinished sweep, with its table of clips and methods that analyse it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.resampling import Resampling
from analysis.sweep import dose, response, tradeoff
from analysis.sweep.batches import Batches
from analysis.sweep.conditions import BASELINE
from analysis.sweep.dose import CrossEffects, DoseResponse
from analysis.sweep.runs import Made, told
from analysis.sweep.tradeoff import Front, LayerMap, Limits, Strategies
from audiolens.checks import checked_function, checked_text, real_number, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, nearest
from audiolens.groups import takes
from audiolens.sound import soundfiles


@guarded
@dataclass(frozen=True, eq=False)
class SweepResult:
    """The clips of a sweep and their measures, with one row per clip.

    Attributes:
        table: the columns are `condition` and its labels, `prompt`, `asked` (the prompt that the model read), `seed`,
            the measures, and `rms_ratio`, `onsets`, `entropy_ratio` and `failed`, which compare the clip with the
            baseline of the same prompt and seed. `file` names the sound file, if sound was written.
        measures, also: names of the measures, and of the further columns.
        settings: the settings with which the clips were generated.
        audio: the sound of clips by row number, if it was kept in memory.
        folder: the sweep's folder, if it has one.
        planned: number of rows of the whole sweep. `table` has fewer rows if it was loaded before the sweep ended.
        distances: the columns that `compared` added, one row per condition.
        runs: the devices on which the clips were generated, with the number of clips of each.

    A sweep does not show that a direction represents the concept in its label. Compare the direction with its controls.
    """

    table: pd.DataFrame
    measures: tuple[str, ...]
    settings: Mapping[str, Any]
    sample_rate: int
    audio: Mapping[int, np.ndarray] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    folder: Path | None = None
    planned: int | None = None
    distances: pd.DataFrame | None = None
    runs: tuple[Made, ...] = ()
    _codes: Int[np.ndarray, "row codebook frame"] | None = None
    _batches: Batches | None = None
    _done: tuple[int, ...] = ()
    _last_read: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @property
    def whole(self) -> bool:
        """Whether the sweep is complete."""
        return self.planned is None or len(self.table) == self.planned

    def codes(self, condition: str = BASELINE) -> Int[Tensor, "row codebook frame"]:
        """Return the codes of a condition's clips, in the order of its rows."""
        names = self._rows_of
        if condition not in names:
            raise InputError(f"no condition {shown(condition)}.{nearest(condition, names)}")
        rows = names[condition]
        if self._codes is not None:
            return torch.from_numpy(self._codes[rows]).long()
        if self._batches is None:
            raise InputError("the codes of this sweep were not kept.")
        # Only the batches that contain rows of the condition are visited, so that a loop over all conditions does not
        # take time in proportion to conditions x batches.
        place = np.searchsorted(self._ends, rows, side="right")
        found = []
        for one in np.unique(place):
            start = self._ends[one] - self._batches.sizes[self._done[one]]
            found.append(self._batch_codes(self._done[one])[rows[place == one] - start])
        return torch.from_numpy(np.concatenate(found)).long()

    @cached_property
    def _rows_of(self) -> dict[str, Int[np.ndarray, " row"]]:
        """The row numbers of every condition, in ascending order."""
        found = self.table.groupby("condition", sort=False).indices
        return {str(name): np.asarray(rows) for name, rows in found.items()}

    @cached_property
    def _ends(self) -> Int[np.ndarray, " batch"]:
        """The number of the row after the last one of every finished batch."""
        assert self._batches is not None
        return np.cumsum([self._batches.sizes[batch] for batch in self._done])

    def _batch_codes(self, batch: int) -> Int[np.ndarray, "row codebook frame"]:
        """Return the codes of a batch, reading its files only if it is not the batch that was read last.

        Conditions are stored one after another, so a batch is read once by a loop over all conditions. Files that
        were written or removed in the meantime are read again.
        """
        assert self._batches is not None
        stamp = batch, self._batches.stamp(batch)
        if self._last_read.get("stamp") != stamp:
            self._last_read.update(codes=self._batches.codes(batch), stamp=stamp)
        return self._last_read["codes"]

    def sound(self, row: int) -> Float[np.ndarray, "channel sample"] | None:
        """Return the sound of a row, or `None` if the sound was not kept.

        Raises:
            DamagedError: if the sound file is missing or damaged.
        """
        if row in self.audio or self._batches is None:
            return self.audio.get(row)
        file = self.table["file"].iloc[row] if "file" in self.table else None
        if not isinstance(file, str):
            return None
        return soundfiles.of_bytes(self._batches.sound(file), self._batches.folder / file)[0]

    def compared(self, distance: Callable[[Tensor, Tensor], float], name: str = "distance") -> SweepResult:
        """Return a copy whose `effects` include the distance of each condition's clips from those of the baseline.

        `distance` is a function of the condition's codes and the baseline's codes, such as
        `partial(al.measure.frechet_distance, lens)`. The condition of kind "redrawn" is the baseline with other seeds,
        so its distance is the noise floor.
        """
        own = self.codes(BASELINE)
        names = list(dict.fromkeys(self.table["condition"]))
        checked_text("name", name)
        checked_function("distance", distance, "a function of two tensors of codes", own, own)
        values = [0.0 if one == BASELINE else _number(distance(self.codes(one), own)) for one in names]
        found = pd.DataFrame({"condition": names, name: values})
        if self.distances is not None:
            found = self.distances.drop(columns=name, errors="ignore").merge(found, on="condition")
        return replace(self, distances=found)

    @takes("resampling", Resampling, keeps=["seed"])
    def effects(self, measured: str, n_bootstrap: int = 1000, *, resampling: Resampling | None = None) -> pd.DataFrame:
        """Return the effects of every condition (`response.effects`), with the distances that `compared` added.

        Here and in the methods below, `resampling` is a `Resampling` with `n_bootstrap` and `seed`.
        """
        how = resampling or Resampling(n_bootstrap=n_bootstrap)
        found = response.effects(self.table, measured, further=self.also, resampling=how)
        return found if self.distances is None else found.merge(self.distances, on="condition", how="left")

    @takes("resampling", Resampling, keeps=["seed"])
    def dose_response(
        self,
        concept: str | None = None,
        measured: str | None = None,
        n_bootstrap: int = 1000,
        *,
        resampling: Resampling | None = None,
    ) -> DoseResponse:
        """Return the effect of one concept's directions at each strength (`dose.dose_response`).

        `concept` can be omitted if only one concept was swept. `measured` defaults to the concept's own measure.
        """
        name = self._concept(concept)
        own = measured or response.MEASURED.get(name, "")
        if measured is None and own not in self.measures:
            own = self.measures[0]
        how = resampling or Resampling(n_bootstrap=n_bootstrap)
        return dose.dose_response(self.effects(own, resampling=how), name, own)

    @takes("resampling", Resampling, keeps=["seed"])
    def cross_effects(
        self,
        concept: str | None = None,
        n_bootstrap: int = 1000,
        *,
        resampling: Resampling | None = None,
        **place: Any,
    ) -> CrossEffects:
        """Return the effect of steering along one concept on every measure, at one place.

        The place with the widest span of effects (`dose.DoseResponse.widest`) is used. `place` (strategy, layer,
        branch, band) restricts which places are considered.
        """
        name = self._concept(concept)
        chosen = dose.place_of(self.dose_response(name, n_bootstrap=0).widest(**place).iloc[0])
        how = resampling or Resampling(n_bootstrap=n_bootstrap)
        keys = (self.table["kind"] == "steered") & dose.at_place(self.table, chosen)
        rows = self.table[keys | (self.table["condition"] == BASELINE)]
        found = [
            response.effects(rows, one, further=self.also, resampling=how)
            .query("kind == 'steered'")
            .assign(measure=one, unit=response.unit_of_change(one))
            for one in self.measures
        ]
        columns = ["measure", "unit", "strength", "effect", "low", "high", "failed", "median", "clips"]
        return CrossEffects(name, chosen, pd.concat(found, ignore_index=True)[columns])

    def layer_map(self, concept: str | None = None, measured: str | None = None, **which: Any) -> LayerMap:
        """Return the effect at every layer and strength (see `tradeoff.layer_map`)."""
        return tradeoff.layer_map(self.dose_response(concept, measured, 0), **which)

    @takes("resampling", Resampling, keeps=["seed"])
    def limits(
        self,
        concept: str | None = None,
        measured: str | None = None,
        n_bootstrap: int = 1000,
        *,
        resampling: Resampling | None = None,
        **bound: Any,
    ) -> Limits:
        """Return, for every place, the largest strength at which the loss stays within a bound (`tradeoff.limits`)."""
        how = resampling or Resampling(n_bootstrap=n_bootstrap)
        return tradeoff.limits(self.dose_response(concept, measured, resampling=how), **bound)

    @takes("resampling", Resampling, keeps=["seed"])
    def strategies(
        self,
        concept: str | None = None,
        measured: str | None = None,
        n_bootstrap: int = 1000,
        *,
        resampling: Resampling | None = None,
        **bound: Any,
    ) -> Strategies:
        """Return the largest effect of each strategy, with a bound on the loss (`tradeoff.strategies`)."""
        how = resampling or Resampling(n_bootstrap=n_bootstrap)
        return tradeoff.strategies(self.dose_response(concept, measured, resampling=how), **bound)

    @takes("resampling", Resampling, keeps=["seed"])
    def front(
        self,
        concept: str | None = None,
        measured: str | None = None,
        n_bootstrap: int = 1000,
        loss: str = "failed",
        *,
        resampling: Resampling | None = None,
    ) -> Front:
        """Return the trade-off between gain and loss (`tradeoff.front`)."""
        how = resampling or Resampling(n_bootstrap=n_bootstrap)
        return tradeoff.front(self.dose_response(concept, measured, resampling=how), loss)

    @drawable
    def plot(self, measured: str | None = None) -> Any:
        """Draw the dose-response if one concept was swept, else the effect of every condition (matplotlib figure)."""
        from analysis.figures import plots

        if len(self.concepts) == 1:
            return self.dose_response(measured=measured).plot()
        name = measured or self.measures[0]
        return plots.strengths(self.effects(name), name)

    @interactive
    def figure(self, measured: str | None = None) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.figures import screen

        if len(self.concepts) == 1:
            return self.dose_response(measured=measured).figure()
        name = measured or self.measures[0]
        return screen.strengths(self.effects(name), name)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts that were steered, if the sweep comes from `sweep.run`."""
        return () if "concept" not in self.table else tuple(self.table["concept"].dropna().unique())

    def _concept(self, given: str | None) -> str:
        known = self.concepts
        if given is None and len(known) == 1:
            return known[0]
        if given not in known:
            near = nearest(str(given), known)
            raise InputError(f"concept={shown(given)}.{near} Swept concepts: {', '.join(known) or 'none'}.")
        return given

    def __repr__(self) -> str:
        lost = self.table["failed"].mean()
        there = "" if self.whole else f" of {self.planned} so far"
        devices = told(self.runs)
        return (
            f"SweepResult({len(self.table)} clips{there}: {self.table['condition'].nunique()} conditions, "
            f"{self.table['prompt'].nunique()} prompts, {lost:.0%} failed{f', {devices}' if devices else ''})"
        )


def _number(found: Any) -> float:
    """Check the value that a caller's distance function returned."""
    try:
        return real_number(found)
    except TypeError:
        raise InputTypeError(f"distance gave {shown(found)}: expected a number.") from None
