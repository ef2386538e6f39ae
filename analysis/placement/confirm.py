"""Choose between a few places by generating clips with steering at each of them.

Every candidate gets a few clips per sign, at the largest strength that these clips tolerate. The better half of the
candidates then gets twice as many further clips, and the place with the widest span of the measure is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from analysis.placement.capacity import SHARES, Screen, Trial, tabled
from analysis.placement.shifts import Candidate
from analysis.sweep.concept_measures import MEASURED, is_ratio, unit_of_change
from audiolens import measure
from audiolens.checks import shown
from audiolens.errors import InputError
from audiolens.measure.table import known_measure
from audiolens.prompts import PromptSet
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens import AudioLens, Generation

Measured = str | Callable[["Generation"], ArrayLike]
"""The name of a measure, or a function that returns one number per clip."""
FIRST_SEED = 60_000
"""Added to the caller's seed. The screen of the chosen place uses other seeds."""
MOST_CLIPS = 100


@dataclass(frozen=True, eq=False)
class Confirmed:
    """The place that was chosen, and what was measured at every candidate.

    Attributes:
        where: the place with the widest span.
        strength: the strength of its clips, or 0 if no candidate tolerates any strength.
        tried: the strengths that were tried at this place (see `Placement.screened`).
        heard: one row per candidate (see `Placement.heard`).
        n_clips: number of clips that were generated, including the unsteered ones.
        row_steps: number of decoder steps, summed over rows.
    """

    where: Candidate
    strength: float
    tried: pd.DataFrame
    heard: pd.DataFrame
    n_clips: int
    row_steps: int


@dataclass(eq=False)
class _Outcome:
    """The trials at one place, by signed strength, the strength that it tolerates, and the span of the clips so far."""

    where: Candidate
    strength: float = 0.0
    span: float = 0.0
    trials: dict[float, Trial] = field(default_factory=dict)
    n_clips: int = 0

    @property
    def signs(self) -> tuple[Trial, Trial]:
        return self.trials[self.strength], self.trials[-self.strength]


class _Ear:
    """Measures the change of clips from the unsteered ones of the same prompt and seed."""

    def __init__(self, measured: Measured, screen: Screen) -> None:
        self.measured, self.screen = measured, screen
        self.relative = isinstance(measured, str) and is_ratio(measured)
        self.unsteered = [self.values(one.clips) for one in screen.rounds]

    def values(self, clips: Generation) -> Float[np.ndarray, " row"]:
        if isinstance(self.measured, str):
            return measure.table(clips, measures=[self.measured])[self.measured].to_numpy(float)
        found = np.asarray(self.measured(clips), dtype=float)
        if found.shape != (len(clips),):
            raise InputError(f"measured: gave shape {found.shape} for {len(clips)} clips: expected one number each.")
        return found

    def change(self, trial: Trial) -> float:
        """Return the typical change: a median of measures, or a mean of a function's values.

        The change of a clip that failed or cannot be measured is 0. Clips whose unsteered clip fails or cannot be
        measured are left out.
        """
        own, base = [], []
        for number, clips in enumerate(trial.clips):
            sound = self.screen.sound[number]
            base.append(self.unsteered[number][sound])
            own.append(np.full(sound.sum(), np.nan) if clips is None else self.values(clips)[sound])
        before, after = np.concatenate(base), np.concatenate(own)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.log(after / before) if self.relative else after - before
        change = np.where(np.array(trial.failed, dtype=bool) | ~np.isfinite(change), 0.0, change)
        change = change[np.isfinite(before) & ((before > 0) | (not self.relative))]
        if not len(change):
            return 0.0
        return float(np.median(change) if isinstance(self.measured, str) else change.mean())

    def hear(self, one: _Outcome) -> None:
        """Set the span: the difference of the change between both signs, or 0 if the place tolerates no strength."""
        if one.strength:
            up, down = one.signs
            one.span = self.change(up) - self.change(down)


def checked_confirm(confirm: int, measured: object, sets: PromptSet, prompts: Sequence[str]) -> Measured:
    """Check what `confirmed` needs before a model runs, and return the measure.

    Raises:
        InputError: if there is no such measure, or if there are too few clips.
    """
    known = [*measure.MEASURES, *measure.EXTRA_MEASURES]
    found = MEASURED.get(sets.concept) if measured is None else measured
    if found is None:
        raise InputError(
            f"confirm={confirm}: {shown(sets.concept)} has no measure of its own: give measured=, one of "
            f"{', '.join(known)}, or a function of the clips."
        )
    if not callable(found):
        measure.refuse_lacking([known_measure("measured", found, known)])
    fewest = -(-2 * len(prompts) // 3)
    if confirm < fewest:
        raise InputError(
            f"confirm={confirm}: expected at least {fewest} for {len(prompts)} prompts, so that every prompt has two "
            "unsteered clips."
        )
    return found  # pyright: ignore[reportReturnType]


def confirmed(
    lens: AudioLens,
    places: Sequence[Candidate],
    strengths: Sequence[float],
    prompts: Sequence[str],
    confirm: int,
    measured: Measured,
    *,
    seconds: float,
    seed: int,
    batch_size: int,
    progress: bool,
    sampling: Sampling,
) -> Confirmed:
    """Generate clips at every place, and return the place with the widest span of the measure.

    Args:
        strengths: the strength of each place at which its screen starts. A place whose strength is not a positive
            number is not tried.
        confirm: number of clips per sign in the first round, with the prompts in cyclic order. A place tolerates a
            strength under the criteria of `capacity.screen`, applied to these clips.
        measured: the measure.

    Raises:
        InputError: if too many unsteered clips fail.
    """
    order = [prompts[clip % len(prompts)] for clip in range(3 * confirm)]
    most = 2 + 2 * len(SHARES) * len(places) + 2 * _half(places)
    with tqdm(total=most, desc="confirming", unit="batch", disable=not progress) as bar:
        screen = Screen(
            lens, [order[:confirm], order[confirm:]], seconds, seed + FIRST_SEED, batch_size, sampling
        )  # fmt: skip
        bar.update(2)
        if screen.unusable:
            raise InputError(f"confirm={confirm}: {screen.unusable}, so places cannot be compared.")
        ear = _Ear(measured, screen)
        outcomes = [_Outcome(where) for where in places]
        for one, first in zip(outcomes, strengths, strict=True):
            before = screen.n_clips
            tried = [first * share for share in SHARES] if np.isfinite(first) and first > 0 else []
            one.strength = next(
                (amount for amount in tried if screen.tolerated(one.where, amount, [0], one.trials, bar)), 0.0
            )
            one.n_clips = screen.n_clips - before
            ear.hear(one)
        tolerant = [one for one in outcomes if one.strength]
        better = sorted(tolerant, key=lambda one: one.span, reverse=True)[: _half(places)]
        for one in better:
            before = screen.n_clips
            for trial, sign in zip(one.signs, (1, -1), strict=True):
                screen.try_round(trial, one.where.steps(sign * one.strength), 1)
                bar.update()
            one.n_clips += screen.n_clips - before
            ear.hear(one)
        bar.total = bar.n
    best = max(better, key=lambda one: one.span, default=outcomes[0])
    heard = pd.DataFrame([_row(one, ear) for one in outcomes])
    return Confirmed(best.where, best.strength, tabled(best.trials), heard, screen.n_clips, screen.row_steps)


def _half(places: Sequence[Candidate]) -> int:
    return (len(places) + 1) // 2


def _row(one: _Outcome, ear: _Ear) -> dict[str, object]:
    """Return a place's row of `Placement.heard`."""
    name = ear.measured if isinstance(ear.measured, str) else getattr(ear.measured, "__name__", "measured")
    signs = one.signs if one.strength else ()
    return {
        "strategy": one.where.strategy, "layer": one.where.layer, "strength": one.strength, "measure": name,
        "unit": unit_of_change(ear.measured) if isinstance(ear.measured, str) else "",
        "span": float(np.exp(one.span)) if ear.relative else one.span,
        "failed": max((float(np.mean(trial.failed)) for trial in signs), default=float("nan")),
        "drift": max((float(np.mean(trial.drift)) for trial in signs), default=float("nan")),
        "clips": one.n_clips, "rounds": len(signs[0].clips) if signs else 0,
    }  # fmt: skip
