"""Steer a model at every place with several strengths, and compare places with the best one.

`placement_rules.py` uses this module. The effect of a place is its widest span between the two signs,
among strengths that fail in at most a tenth of the clips. The best of many candidates looks better than it is.
Strengths (and the best place) are therefore chosen on one half of each prompt's seeds and evaluated on the other, and
the reverse, over many random halvings. A share may exceed 100%.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis import sweep
from analysis.placement.rules import place_name
from analysis.resampling import resampled
from analysis.statistics import MOST_FAILED
from analysis.study import scan
from analysis.sweep.playing import Also
from analysis.sweep.response import KEYS, is_ratio
from audiolens import AudioLens
from audiolens.directions.directions import Directions
from audiolens.directions.strategies import Strategy
from audiolens.measure.failure import LEAST_ENTROPY_RATIO
from audiolens.measure.rhythm import FEWEST_ONSETS
from audiolens.prompts import load

OWN: Mapping[str, str] = {
    "tempo": "tempo_ioi", "timbre": "brightness", "density": "onset_rate", "register": "pitch", "loudness": "loudness",
    "mode": "mode",
}  # fmt: skip
"""The measure of each concept. Those of the other concepts, which are instruments, is the share of clips that a
classifier takes for the instrument."""
SHARE = "instrument"
"""The column that is 1 if a clip is taken for the instrument, and otherwise 0. It is averaged by its mean."""
HALVINGS = 20
DRAWS = 500
DOUBLED, ASKED = "-doubled", "-asked"
"""Endings of the folders for clips at twice the largest strength, and for clips that were asked for in words."""


def failure_of(concept: str) -> str:
    """The column of failed clips. For loudness, a level far from the unsteered clip's is the intended effect."""
    return "spoilt" if concept == "loudness" else "failed"


@dataclass(frozen=True)
class Sweeps:
    """The brute-force sweeps of a model.

    Attributes:
        out: folder of the sweeps, which resume there.
        strengths: the positive strengths to try, per strategy.
        measures: names of the measures.
        also: further columns, as in `sweep.play`.
        n_jobs: as in `sweep.play`.
    """

    lens: AudioLens
    out: Path
    n_prompts: int
    n_seeds: int
    seconds: float
    strengths: Mapping[Strategy, tuple[float, ...]]
    measures: Sequence[str]
    also: Also | None = None
    n_jobs: int | None = None

    def play(self, concept: str, name: str, conditions: Sequence[sweep.Condition]) -> pd.DataFrame:
        """Run the conditions on a concept's clips, in a folder of the given name."""
        clips = sweep.clips(load(concept, lens=self.lens).development[: self.n_prompts], self.n_seeds)
        return sweep.play(
            self.lens, conditions, clips, seconds=self.seconds, measures=self.measures, also=self.also,
            out=self.out / name, n_jobs=self.n_jobs, engine="auto", progress=name,
        ).table  # fmt: skip

    def steered(self, concept: str, directions: Directions, failed: str = "failed") -> pd.DataFrame:
        """Run every place at every strength, and at twice the largest if few clips fail there."""
        table = with_spoilt(self.play(concept, concept, scan.conditions(directions, self.strengths)))
        lost = table[table.strength.abs() == table.strategy.map({name: max(of) for name, of in self.strengths.items()})]
        lost = lost.groupby(["strategy", "layer", "strength"])[failed].mean().groupby(["strategy", "layer"]).max()
        whole: Any = lost[lost <= MOST_FAILED].index
        places = [{"strategy": strategy, "layer": int(layer)} for strategy, layer in whole]
        if places:
            doubled: dict[Strategy, tuple[float, ...]] = {name: (2 * max(of),) for name, of in self.strengths.items()}
            self.play(concept, f"{concept}{DOUBLED}", scan.at(directions, places, doubled))
        return steered_table(self.out, concept)

    def prompted(self, concept: str) -> pd.DataFrame:
        """Run the same clips prompted with the poles' words."""
        sets = load(concept, lens=self.lens)
        poles = [
            sweep.Condition(pole, ask=lambda prompt, pole=pole: sets.prompted(prompt, pole), labels={"strength": sign})
            for pole, sign in (("positive", 1.0), ("negative", -1.0))
        ]
        baseline = sweep.Condition(sweep.BASELINE, labels={"strength": 0.0})
        self.play(concept, f"{concept}{ASKED}", [baseline, *poles])
        return prompted_table(self.out, concept)


def steered_table(out: Path, concept: str) -> pd.DataFrame:
    """The clips of finished sweeps in a folder: at every strength, and at twice the largest."""
    table = with_spoilt(sweep.load_folder(out / concept).table)
    if not (out / f"{concept}{DOUBLED}").is_dir():
        return table
    more = with_spoilt(sweep.load_folder(out / f"{concept}{DOUBLED}").table)
    return pd.concat([table, more[more.condition != sweep.BASELINE]], ignore_index=True)


def prompted_table(out: Path, concept: str) -> pd.DataFrame:
    """The clips of a finished sweep in a folder that were asked for in words."""
    return with_spoilt(sweep.load_folder(out / f"{concept}{ASKED}").table).assign(strategy="words", layer=0)


def with_spoilt(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column for failures by onsets and entropy alone, and not by level."""
    varied = (table.entropy_ratio >= LEAST_ENTROPY_RATIO) & (table.onsets >= FEWEST_ONSETS)
    return table.assign(spoilt=~varied)


@dataclass(frozen=True, eq=False)
class Truth:
    """The effect of every place on a measure at every strength, clip by clip.

    Attributes:
        tried: table of place and strength.
        change: change of the measure from the unsteered clip, as a log ratio or in the measure's unit; 0 for failed
            clips.
        lost: mask of the failed clips.
        prompts, seeds: prompt and seed of each clip.
        by_mean: whether changes are averaged by their mean instead of their median.
    """

    tried: pd.DataFrame
    change: Float[np.ndarray, "sign tried clip"]
    lost: Bool[np.ndarray, "sign tried clip"]
    prompts: np.ndarray
    seeds: np.ndarray
    by_mean: bool = False

    @classmethod
    def of(cls, table: pd.DataFrame, measured: str, failed: str = "failed") -> Truth:
        own = table[table.condition == sweep.BASELINE].set_index(KEYS)[measured]
        own = own[own.notna()]
        shares = is_ratio(measured)
        tried, changes, losts = [], [], []
        steered = table[table.condition != sweep.BASELINE]
        for key, pair in steered.groupby(["strategy", "layer", steered.strength.abs()]):
            strategy, layer, strength = cast(tuple[Any, Any, Any], key)
            tried.append((place_name(strategy, int(layer)), float(strength)))
            for sign in (1, -1):
                rows: Any = pair[pair.strength * sign > 0].set_index(KEYS).loc[own.index]
                change = np.log(rows[measured] / own) if shares else rows[measured] - own
                gone = rows[failed].to_numpy() | ~np.isfinite(change.to_numpy())
                changes.append(np.where(gone, 0.0, change))
                losts.append(gone)
        change, lost = (np.array(values).reshape(-1, 2, len(own)).swapaxes(0, 1) for values in (changes, losts))
        return cls(
            pd.DataFrame(tried, columns=["place", "strength"]),
            change,
            lost,
            own.index.get_level_values("prompt").to_numpy(),
            own.index.get_level_values("seed").to_numpy(),
            measured == SHARE,
        )

    def facts(self) -> dict[str, Any]:
        """Everything as JSON can hold it, for `of_facts`."""
        whole = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tried"}
        lists = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in whole.items()}
        return {"tried": self.tried.to_dict("list"), **lists}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Truth:
        """The inverse of `facts`."""
        arrays = {name: np.array(value) if isinstance(value, list) else value for name, value in facts.items()}
        return cls(**{**arrays, "tried": pd.DataFrame(facts["tried"])})

    def spans(self, rows: Int[np.ndarray, " clip"] | slice = slice(None)) -> pd.DataFrame:
        """Table of place, strength, span between the signs, and the larger share of failed clips."""
        span, failed = self._spans(rows)
        return self.tried.assign(span=span, failed=failed)

    def _spans(self, rows: Int[np.ndarray, " clip"] | slice) -> tuple[Any, Any]:
        up, down = (np.mean if self.by_mean else np.median)(self.change[:, :, rows], axis=2)
        return up - down, self.lost[:, :, rows].mean(2).max(0)

    @property
    def places(self) -> list[str]:
        """The places, in the order of `held_out`."""
        return list(self._index)

    @cached_property
    def _index(self) -> dict[str, Int[np.ndarray, " _"]]:
        """The rows of `tried` of each place."""
        return {str(place): np.asarray(rows) for place, rows in self.tried.groupby("place", sort=False).indices.items()}

    def halvings(self, n: int, among: Int[np.ndarray, " clip"] | None = None, seed: int = 0) -> Iterator[list[Any]]:
        """Random halvings of some clips by seed: no seed is in both halves, each prompt is."""
        rng = np.random.default_rng(seed)
        rows = np.arange(len(self.seeds)) if among is None else among
        for _ in range(n):
            first = np.concatenate([
                rng.permutation(np.unique(own))[: len(np.unique(own)) // 2]
                for own in (self.seeds[self.prompts == prompt] for prompt in np.unique(self.prompts))
            ])  # fmt: skip
            side = np.isin(self.seeds[rows], first)
            yield [rows[side], rows[~side]]

    def held_out(
        self, n: int, among: Int[np.ndarray, " clip"] | None = None, seed: int = 0
    ) -> tuple[Float[np.ndarray, " place"], float]:
        """The mean span of each place, and of the best place, on one half of the clips.

        The strength (and the best place) are chosen on the other half. The span is 0 if too many clips fail at every
        strength.
        """
        found, best = np.zeros(len(self.places)), 0.0
        for halves in self.halvings(n, among, seed):
            spans = [self._spans(rows) for rows in halves]
            for (chosen, failed), (read, _) in (spans, spans[::-1]):
                within = np.where(failed <= MOST_FAILED, chosen, -np.inf)
                at = np.array([rows[within[rows].argmax()] for rows in self._index.values()])
                found += np.where(np.isfinite(within[at]), read[at], 0.0)
                best += read[within.argmax()] if np.isfinite(within).any() else 0.0
        return found / (2 * n), best / (2 * n)

    def shares(self, names: Sequence[str], n: int, among: Int[np.ndarray, " clip"] | None = None, seed: int = 0) -> Any:
        """The span of each named place as a share of the best place's; 0 for a place that was not tried."""
        spans, best = self.held_out(n, among, seed)
        by_place = dict(zip(self.places, spans, strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.array([by_place.get(name, 0.0) for name in names]) / best

    def draws(self, n: int = DRAWS) -> list[tuple[Float[np.ndarray, " place"], float]]:
        """`held_out` on resamples of the prompts."""
        rows = resampled(self.prompts, n)
        return [self.held_out(HALVINGS // 2, among, seed) for seed, among in enumerate(rows)]


def chosen_strengths(spans: pd.DataFrame) -> pd.DataFrame:
    """The strength with the widest span within the loss bound, per place; a span of 0 if there is none."""
    within = spans[spans.failed <= MOST_FAILED]
    best = within.loc[within.groupby("place").span.idxmax()].set_index("place")
    return best.reindex(spans.place.unique()).fillna({"span": 0.0})
