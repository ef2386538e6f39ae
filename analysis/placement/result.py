"""Placement, the result: the place, the evidence, how sure it is, and a sentence why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import layer_attribution, statistics
from analysis.layer_attribution import LayerAttribution
from analysis.placement.shifts import Candidate, Shifts
from audiolens.directions import Directions
from audiolens.errors import InputError
from audiolens.prompts import PromptSet
from audiolens.steering import Strategy

ALIGNMENT = "alignment"
AS_GOOD = 0.995
"""Places that reach this share of the best are taken as equally good: the simplest of them is chosen."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a concept's direction is to be applied: `al.steer(placement.directions, **placement.where, strength=...)`.

    Attributes:
        concept, poles: what was placed, the positive pole first.
        strategy, layer: the place; `layer` is whose vector, `None` in "all-to-all".
        directions: at the site that they were read at.
        candidates: one row per place: `strategy`, `layer`; `alignment` with `low` and `high`, the cosine of what the
            direction does to the next codes there and of what the words do (Fisher metric; 95% intervals over
            prompts); `gain`, the share of the words' shift that a strength of 1 brings about; `strength`, which moves
            neutral music as far towards a pole as the pole's word, without guidance.
        evidence: what else was read, over layers; the direction's length always.
        by: what decided.
        certainty: the share of resampled prompts in which the chosen place is as good as the best (99.5% of it). NaN
            for other evidence than alignment.
        random: alignments of random directions of the same lengths at the chosen place.
        n_prompts: neutral prompts behind it.
        row_steps: steps of rows that the decoder ran for it, all evidence included: its cost.

    It does not show that steering there works: what moves the next codes as words do need not add up over a clip, and
    nothing is said of strengths that leave the linear range. It cannot find a place that no candidate is at. Words'
    and direction's shifts are compared on music that is not steered.
    """

    concept: str
    poles: tuple[str, str]
    strategy: Strategy
    layer: int | None
    directions: Directions
    candidates: pd.DataFrame
    evidence: LayerAttribution
    by: str
    certainty: float
    n_prompts: int
    row_steps: int
    random: tuple[float, ...] = ()

    @property
    def site(self) -> str:
        return self.directions.meta.site

    @property
    def where(self) -> dict[str, Any]:
        """What `al.steer` takes."""
        own = {} if self.layer is None else {"layer": self.layer}
        return {"strategy": self.strategy, **own}

    @property
    def layers(self) -> list[int]:
        """The blocks that are changed."""
        if self.strategy == "one-to-one" and self.layer is not None:
            return [self.layer]
        return list(range(self.directions.meta.n_layers))

    @property
    def name(self) -> str:
        return self.strategy if self.layer is None else f"{self.strategy} {self.layer}"

    @property
    def chosen(self) -> pd.Series:
        """The chosen place's row of `candidates`."""
        mine = self.candidates.strategy == self.strategy
        return self.candidates[mine if self.layer is None else mine & (self.candidates.layer == self.layer)].iloc[0]

    @property
    def strength(self) -> float:
        """A strength to begin with: without guidance, as far as the pole's word. NaN where the direction moves the
        codes against the words."""
        return float(self.chosen.strength)

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        row, low, high = self.chosen, *self.poles[::-1]
        where = "added at every block, each its own" if self.layer is None else (
            f"block {self.layer}'s, added {'there' if self.strategy == 'one-to-one' else 'at every block'}"
        )  # fmt: skip
        told = (
            f"From {low} to {high} by {where}: it moves the next codes as the words do with a cosine of "
            f"{row.alignment:.2f} [{row.low:.2f}, {row.high:.2f}]"
        )
        if self.by != ALIGNMENT:
            one = self.evidence[self.by]
            told = f"{told}; chosen by {self.by}, which is largest there ({one.values[one.layers.index(one.peak)]:.3g})"
        else:
            best = self.candidates.iloc[int(self.candidates.alignment.argmax())]
            if best.name != row.name:
                told += f", as good as the best ({_named(best)}: {best.alignment:.2f})"
            rest = self.candidates.alignment
            told += f"; places reach {rest.min():.2f} to {rest.max():.2f}"
        if self.random:
            told += f", random directions there at most {max(map(abs, self.random)):.2f}"
        return f"{told}."

    def beside(self, random: Sequence[float], row_steps: int) -> Placement:
        """The same with random directions' alignments beside it."""
        told = tuple(float(value) for value in random)
        return replace(self, random=told, row_steps=self.row_steps + row_steps)

    def to_frame(self) -> pd.DataFrame:
        """`candidates`, with `chosen`, and what the other evidence says of each one's layer."""
        table = self.candidates.assign(chosen=self.candidates.index == self.chosen.name)
        for one in self.evidence.evidence:
            by_layer = dict(zip(one.layers, one.values, strict=True))
            table[one.name] = [by_layer.get(layer, float("nan")) for layer in table.layer]
        return table

    def plot(self) -> Any:
        """Alignment of every place, and the other evidence by block (matplotlib figure)."""
        from analysis.placement import figures

        return figures.paper(self)

    def figure(self) -> Any:
        """The same on screen (plotly figure)."""
        from analysis.placement import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        sure = "" if np.isnan(self.certainty) else f" As good as the best in {self.certainty:.0%} of resamples."
        return f"Placement({self.concept}: {self.name}. {self.reason}{sure})"


def chosen(
    sets: PromptSet,
    directions: Directions,
    places: Sequence[Candidate],
    told: Shifts,
    other: Mapping[str, Any],
    *,
    by: str,
    n_bootstrap: int,
    seed: int,
    row_steps: int,
) -> Placement:
    """The placement that the shifts, or other evidence, decide."""
    evidence = layer_attribution.gather(**other)
    alignment, n_rows = told.alignment(), told.words.shape[0]
    ends = [
        statistics.bootstrap(
            lambda rows, at=at: float(told.alignment(rows)[at]), np.arange(n_rows), n_bootstrap=n_bootstrap, seed=seed
        )
        for at in range(len(places))
    ]
    table = pd.DataFrame(
        {
            "strategy": [place.strategy for place in places],
            "layer": pd.array([place.layer for place in places], dtype="Int64"),
            "alignment": alignment,
            "low": [end.low for end in ends],
            "high": [end.high for end in ends],
            "gain": told.gain,
            "strength": [0.5 / gain if gain > 0 else float("nan") for gain in told.gain],
        }
    )
    if by == ALIGNMENT:
        at, certainty = _first_as_good(alignment), _certainty(told, n_bootstrap, seed)
    else:
        one = evidence[by]
        try:
            at = next(index for index, place in enumerate(places) if place.layer == one.peak)
        except StopIteration:
            raise InputError(f"{by} is largest at layer {one.peak}, which is no candidate.") from None
        certainty = float("nan")
    return Placement(
        concept=sets.concept,
        poles=sets.poles,
        strategy=places[at].strategy,
        layer=places[at].layer,
        directions=directions,
        candidates=table,
        evidence=evidence,
        by=by,
        certainty=certainty,
        n_prompts=n_rows,
        row_steps=row_steps,
    )


def _first_as_good(alignment: Float[np.ndarray, " candidate"]) -> int:
    """The first place as good as the best: they stand in order, the simplest strategy and the lowest block first."""
    return int(np.flatnonzero(alignment >= _enough(alignment.max()))[0])


def _certainty(told: Shifts, n_bootstrap: int, seed: int) -> float:
    at, rows = _first_as_good(told.alignment()), told.words.shape[0]
    if rows < 2 or not n_bootstrap:
        return float("nan")
    rng = np.random.default_rng(seed)
    again = [told.alignment(rng.integers(rows, size=rows)) for _ in range(n_bootstrap)]
    return float(np.mean([found[at] >= _enough(found.max()) for found in again]))


def _enough(best: float) -> float:
    return best * (AS_GOOD if best > 0 else 2 - AS_GOOD)


def _named(row: pd.Series) -> str:
    return str(row.strategy) if pd.isna(row.layer) else f"{row.strategy} {row.layer}"
