"""The result of a test with ratings: the mean rating of each condition, after the listeners were screened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.listening_test.agreement import alpha, in_words
from analysis.listening_test.design import RATED, Key
from analysis.listening_test.intervals import Draws, mean_of, totals
from analysis.listening_test.responses import Refused, Response
from analysis.resampling import CONFIDENCE
from audiolens.door import guarded
from audiolens.errors import InputError

SCREENED_RATING, SCREENED_SHARE = 90.0, 0.15
"""ITU-R BS.1534-3, section 4.1.2: listeners are excluded who, in more than 15% of the trials, rate the hidden reference
below 90, or an anchor above 90. The Recommendation means the anchor of 7 kHz; here it is the one anchor of the test."""


@guarded
@dataclass(frozen=True, eq=False)
class Ratings:
    """How good listeners rated the clips, from 0 to 100.

    Attributes:
        table: one row per `condition`. `mean` is the mean rating, with intervals as in `Preference.table` (`low`,
            `high`; `listener_low`, `listener_high`; `prompt_low`, `prompt_high`). `median`, `q1` and `q3` are those of
            all ratings. `difference` is the mean difference from the hidden reference of the same listener and trial,
            with the interval `difference_low` to `difference_high`.
        agreement: Krippendorff's alpha of the ratings (interval); NaN if all ratings are the same.
        ratings: one row per rating, with the difference from the hidden reference.
        listeners: one row per listener: the share of trials in which the hidden reference was rated below 90
            (`reference_low`) and the anchor above 90 (`anchor_high`), whether the ratings were `used`, and the
            `minutes` taken.
        refused: files that were not used, and why.
        concept, model, strength, left_out: from the key.
        confidence: coverage of the intervals.

    The reference is the unsteered clip. Steered clips differ from it in what is played, not only in quality, so a lower
    rating can also mean that listeners liked the other music less. The listeners are those who answered.
    """

    table: pd.DataFrame
    agreement: float
    ratings: pd.DataFrame
    listeners: pd.DataFrame
    refused: tuple[Refused, ...]
    concept: str
    model: str
    strength: float
    left_out: int
    confidence: float = CONFIDENCE

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def by_prompt(self) -> pd.DataFrame:
        """Return the mean rating per condition and prompt, with the number of ratings."""
        return self._by("prompt")

    def by_listener(self) -> pd.DataFrame:
        """Return the mean rating per condition and listener, with the number of ratings."""
        return self._by("listener")

    @drawable
    def plot(self) -> Any:
        """Draw the mean ratings with their intervals, and those of single prompts (matplotlib figure)."""
        from analysis.listening_test import figures

        return figures.ratings_paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.listening_test import figures

        return figures.ratings_screen(self)

    def _by(self, name: str) -> pd.DataFrame:
        grouped = self.ratings.groupby(["condition", name], sort=False)["rating"]
        return grouped.agg(mean="mean", ratings="size").reset_index()

    def __repr__(self) -> str:
        means = [
            f"{row['condition']} {row['mean']:.0f}"
            + (f" [{row['low']:.0f}, {row['high']:.0f}]" if np.isfinite(row["low"]) else "")
            for row in self.table.to_dict("records")
        ]
        used, all_of = int(self.listeners["used"].sum()), len(self.listeners)
        return (
            f"Ratings({self.concept} on {self.model!r}, {used} of {all_of} listeners: {', '.join(means)} of 100; "
            f"{in_words(self.agreement)})"
        )


def ratings(
    key: Key, responses: Sequence[Response], refused: Sequence[Refused], n_bootstrap: int,
    confidence: float = CONFIDENCE, seed: int = 0,
) -> Ratings:  # fmt: skip
    """Analyse the responses to a test with ratings, without those of listeners whom BS.1534-3 excludes.

    Raises:
        InputError: if no listener passed.
    """
    everything = pd.DataFrame([row for one in responses for row in _rows(key, one)])
    screened = [_screened(one, everything[everything["listener"] == one.listener]) for one in responses]
    listeners = pd.DataFrame(screened)
    kept = everything[everything["listener"].isin(listeners.loc[listeners["used"], "listener"])]
    if kept.empty:
        raise InputError(
            f"none of {len(listeners)} listeners passed the screening of BS.1534-3 (hidden reference below "
            f"{SCREENED_RATING:g}, or anchor above it, in more than {SCREENED_SHARE:.0%} of the trials)."
        )
    names, prompts = list(dict.fromkeys(kept["listener"])), list(dict.fromkeys(kept["prompt"]))
    draws = Draws.of(len(names), len(prompts), n_bootstrap, confidence, seed)
    rows = []
    for role in RATED:
        own = kept[kept["role"] == role]
        found = mean_of(*totals(own, names, prompts, "rating"), draws, (0.0, 100.0))
        apart = mean_of(*totals(own, names, prompts, "difference"), draws, (-100.0, 100.0))
        if role == "reference":
            # What is subtracted from itself is 0 for all listeners and prompts.
            apart |= {"low": 0.0, "high": 0.0}
        q1, median, q3 = np.quantile(own["rating"], (0.25, 0.5, 0.75))
        rows.append(
            {
                "condition": key.label(role), **found, "median": median, "q1": q1, "q3": q3,
                "difference": apart["mean"], "difference_low": apart["low"], "difference_high": apart["high"],
            }
        )  # fmt: skip
    items = kept.pivot(index="listener", columns=["trial", "role"], values="rating")
    return Ratings(
        table=pd.DataFrame(rows),
        agreement=alpha(items.to_numpy(float), "interval"),
        ratings=kept.drop(columns="role"),
        listeners=listeners,
        refused=tuple(refused),
        concept=key.concept,
        model=key.model,
        strength=key.strength,
        left_out=key.left_out,
        confidence=float(confidence),
    )


def _rows(key: Key, one: Response) -> list[dict[str, Any]]:
    rows = []
    for trial in key.trials:
        given = {trial.clips[name]: float(value) for name, value in one.answers[trial.trial].items()}
        for role, value in given.items():
            rows.append(
                {
                    "listener": one.listener, "trial": trial.trial, "prompt": trial.prompt, "seed": trial.seed,
                    "role": role, "condition": key.label(role), "rating": value,
                    "difference": value - given["reference"],
                }
            )  # fmt: skip
    return rows


def _screened(one: Response, own: pd.DataFrame) -> dict[str, Any]:
    low = float((own.loc[own["role"] == "reference", "rating"] < SCREENED_RATING).mean())
    high = float((own.loc[own["role"] == "anchor", "rating"] > SCREENED_RATING).mean())
    return {
        "listener": one.listener, "file": one.file, "reference_low": low, "anchor_high": high,
        "used": low <= SCREENED_SHARE and high <= SCREENED_SHARE, "minutes": one.seconds / 60,
    }  # fmt: skip
