"""Swept: the clips of a sweep, whole or as far as it got, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from analysis import ledger as ledgers
from analysis import response
from analysis.conditions import BASELINE
from audiolens.errors import InputError, nearest


@dataclass(frozen=True, eq=False)
class SweepResult:
    """One row per clip with everything measured.

    Attributes:
        table: `condition` and its labels, `prompt`, `asked` (the prompt the model read), `seed`, the measures, and
            `rms_ratio`, `onsets`, `entropy_ratio`, `failed` beside the baseline of the same prompt and seed; `file`
            where sound was written.
        measures: what was measured; `also` is what was asked for beside it.
        settings: how the clips were made.
        audio: the sound of the rows that were kept, by row number.
        folder: where it was written, if it was.
        planned: rows of the whole sweep; more than there are where it was read before it ended.
        distances: one row per condition that `compared` gave further numbers.

    It does not show that a direction means what it is called: read it beside the controls.
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
    _codes: Int[np.ndarray, "row codebook frame"] | None = None

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @property
    def whole(self) -> bool:
        """Whether every row is there."""
        return self.planned is None or len(self.table) == self.planned

    def codes(self, condition: str = BASELINE) -> Int[Tensor, "row codebook frame"]:
        """The codes of a condition's clips, in the order of its rows."""
        names = self.table["condition"]
        if condition not in set(names):
            raise InputError(f"no condition {condition!r}.{nearest(condition, set(names))}")
        rows = np.flatnonzero(names == condition)
        if self._codes is not None:
            return torch.from_numpy(self._codes[rows]).long()
        if self.folder is None:
            raise InputError("the codes of this sweep were not kept.")
        found, start = [], 0
        for batch in sorted(ledgers.finished(self.folder)):
            size = ledgers.n_rows(self.folder, batch)
            mine = rows[(rows >= start) & (rows < start + size)] - start
            if len(mine):
                found.append(ledgers.read_codes(self.folder, batch)[mine])
            start += size
        return torch.from_numpy(np.concatenate(found)).long()

    def compared(self, distance: Callable[[Tensor, Tensor], float], name: str = "distance") -> SweepResult:
        """The same with the distance of each condition's clips from the baseline's, as a column of `effects`.

        `distance` takes the codes of the two, such as `partial(al.measure.frechet_distance, lens)`. That of the kind
        "redrawn", the baseline drawn with other seeds, is the least that can be seen.
        """
        own = self.codes(BASELINE)
        names = list(dict.fromkeys(self.table["condition"]))
        values = [0.0 if one == BASELINE else float(distance(self.codes(one), own)) for one in names]
        found = pd.DataFrame({"condition": names, name: values})
        if self.distances is not None:
            found = self.distances.drop(columns=name, errors="ignore").merge(found, on="condition")
        return replace(self, distances=found)

    def effects(self, measured: str, n_bootstrap: int = 1000) -> pd.DataFrame:
        """`response.effects` of this sweep's rows, with the distances that `compared` added."""
        found = response.effects(self.table, measured, n_bootstrap, self.also)
        return found if self.distances is None else found.merge(self.distances, on="condition", how="left")

    def plot(self, measured: str | None = None) -> Any:
        """The effect of each condition against its strength (matplotlib figure)."""
        from analysis import plots

        name = measured or self.measures[0]
        return plots.strengths(self.effects(name), name)

    def figure(self, measured: str | None = None) -> Any:
        """The same for the screen (plotly figure)."""
        from analysis import screen

        name = measured or self.measures[0]
        return screen.strengths(self.effects(name), name)

    def __repr__(self) -> str:
        lost = self.table["failed"].mean()
        there = "" if self.whole else f" of {self.planned} so far"
        return (
            f"SweepResult({len(self.table)} clips{there}: {self.table['condition'].nunique()} conditions, "
            f"{self.table['prompt'].nunique()} prompts, {lost:.0%} failed)"
        )
