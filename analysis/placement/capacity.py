"""Find a strength that the chosen place tolerates, by generating a few short steered clips.

Alignment and gain are computed at a small strength and on fixed codes. They do not show at which strength generated
music breaks down. `screen` therefore generates the same clips without steering and with steering of either sign,
starting at the strength whose shift matches that of naming the pole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from analysis.placement.other_evidence import generated_steps
from analysis.placement.result import SCREEN_FAILED
from analysis.placement.shifts import Candidate
from audiolens import measure
from audiolens.errors import ActivationOverflow
from audiolens.interventions import Intervention
from audiolens.model.timeline import longest_seconds
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens import AudioLens, Generation

ROUNDS, SEEDS = 2, 2
"""The screen tests a strength in two rounds, with two or more clips per prompt and sign in each round. The second round
follows only if few clips of the first round failed."""
ROUND_CLIPS = 16
"""The least number of clips per sign in a round. Few prompts therefore have more seeds: with fewer clips, a single
failure would be more than the share that is tolerated."""
FIRST_SEED = 20_000
"""Added to the caller's seed, so that the screen does not repeat the clips on which the place was chosen."""
SEEDS_USED = 100_000
"""The seeds of a screen exceed the caller's seed by less than this number."""
SHARES = (1.0, 0.5, 0.25)
"""The strengths that are tried, relative to the first."""
LEAST_SOUND = 0.5
"""Strengths are compared only if at least this share of the unsteered clips does not fail."""
MOST_DRIFT = 3.0
"""The largest drift that is tolerated, as a multiple of the difference between two seeds of one prompt."""


@dataclass(frozen=True, eq=False)
class Capacity:
    """The strength that a place tolerates.

    Attributes:
        strength: the largest strength that was tried and tolerated with both signs. It is 0 if no strength was
            tolerated, and NaN if the criteria do not apply (see `left_out`).
        tried: one row per strength and sign, in the order in which they were tried. The columns are `strength`
            (signed), `failed` (the share of failed clips, see `measure.failed`), `drift` (see `MOST_DRIFT`) and `clips`
            (the number of clips).
        row_steps: number of decoder steps, summed over rows.
        left_out: why no strength was tried, or an empty string.
    """

    strength: float
    tried: pd.DataFrame
    row_steps: int
    left_out: str = ""


@dataclass(frozen=True, eq=False)
class _Batch:
    """Clips, and the mean nats per code of each clip under the unsteered model."""

    clips: Generation
    nats: Float[np.ndarray, " row"]


@dataclass(eq=False)
class Trial:
    """What steering with one signed strength did to the clips of the rounds so far, and the clips of each round.

    `failed` and `drift` leave out the clips that fail without steering. The clips of a round are `None` if activations
    overflowed.
    """

    failed: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    clips: list[Generation | None] = field(default_factory=list)


class Screen:
    """Generates the clips of a screen. The clips of a round have the same prompts and seeds at every strength.

    `rounds` are the prompts of each round's clips. Seeds count up from `first_seed`.
    """

    def __init__(
        self,
        lens: AudioLens,
        rounds: Sequence[Sequence[str]],
        seconds: float,
        first_seed: int,
        batch_size: int,
        sampling: Sampling,
    ) -> None:
        prompts = [prompt for one in rounds for prompt in one]
        prefix = lens.config.prefix(max(map(len, lens.text_tokens(prompts))))
        self.lens, self.prompts, self.batch_size = lens, [list(one) for one in rounds], batch_size
        self.sampling = replace(sampling, seconds=min(seconds, longest_seconds(lens.config, prefix)))
        self.first_seeds = [first_seed + before for before in accumulate(map(len, rounds), initial=0)]
        self.row_steps, self.n_clips = 0, 0
        self.rounds = [self.generated([], number) for number in range(len(rounds))]
        self.sound = [~measure.failed(one.clips, one.clips) for one in self.rounds]
        """Which clips of a round do not fail without steering. Only these clips are compared."""
        nats = pd.Series(np.concatenate([one.nats for one in self.rounds])).groupby(prompts)
        pairs = [abs(a - b) for _, of_prompt in nats for a, b in combinations(of_prompt, 2)]
        self.between_seeds = float(np.mean(pairs))

    @property
    def unusable(self) -> str:
        """Why strengths cannot be compared, or an empty string."""
        clips = np.concatenate(self.sound)
        if clips.mean() < LEAST_SOUND:
            return f"{(~clips).sum()} of {len(clips)} unsteered clips already fail"
        return "clips of different seeds are equal" if self.between_seeds == 0 else ""

    def generated(self, steps: list[Intervention], number: int) -> _Batch:
        """Generate the clips of a round and score them."""
        prompts, first = self.prompts[number], self.first_seeds[number]
        self.n_clips += len(prompts)
        clips = self.lens.generate(
            prompts, interventions=steps, seeds=list(range(first, first + len(prompts))), sampling=self.sampling,
            batch_size=self.batch_size,
        )  # fmt: skip
        nats = measure.code_nats(
            self.lens, clips.prompts, clips.codes, guidance_scale=self.sampling.guidance_scale,
            temperature=self.sampling.temperature or 1.0, batch_size=self.batch_size,
        )  # fmt: skip
        # Every clip is generated once and scored once, both with guidance.
        self.row_steps += 2 * generated_steps(self.lens, len(prompts), float(self.sampling.seconds or 0))
        return _Batch(clips, nats.mean(dim=(1, 2)).double().numpy())

    def try_round(self, trial: Trial, steps: list[Intervention], number: int) -> None:
        """Generate the clips of a round with steering, and add what happened to them to a trial."""
        base, sound = self.rounds[number], self.sound[number]
        try:
            batch = self.generated(steps, number)
        except ActivationOverflow:
            failed, drift = np.ones(len(sound)), np.full(len(sound), np.inf)
            trial.clips.append(None)
        else:
            failed, drift = measure.failed(batch.clips, base.clips), np.abs(batch.nats - base.nats) / self.between_seeds
            trial.clips.append(batch.clips)
        trial.failed.extend(failed[sound].astype(float).tolist())
        trial.drift.extend(drift[sound].tolist())

    def tolerated(
        self, where: Candidate, strength: float, numbers: Sequence[int], trials: dict[float, Trial], bar: tqdm[Any]
    ) -> bool:
        """Return whether a place tolerates a strength of either sign in some rounds, and add the trials of both signs.

        The strength is rejected as soon as too many clips of either sign have failed.
        """
        most = int(SCREEN_FAILED * sum(int(self.sound[number].sum()) for number in numbers))
        for number in numbers:
            for signed in (strength, -strength):
                trial = trials.setdefault(signed, Trial())
                self.try_round(trial, where.steps(signed), number)
                bar.update()
                if sum(trial.failed) > most:
                    return False
        return all(np.mean(trials[signed].drift) <= MOST_DRIFT for signed in (strength, -strength))


def screen(
    lens: AudioLens,
    where: Candidate,
    strength: float,
    prompts: Sequence[str],
    *,
    seconds: float,
    seed: int,
    batch_size: int,
    progress: bool,
    sampling: Sampling,
) -> Capacity:
    """Return the largest strength tolerated at a place, among `strength` times `SHARES`.

    A strength is tolerated if, for each sign, at most `SCREEN_FAILED` of the clips of both rounds fail and the drift is
    at most `MOST_DRIFT`. Clips that fail without steering are not counted.
    """
    trials: dict[float, Trial] = {}
    rounds = [list(prompts) * max(SEEDS, math.ceil(ROUND_CLIPS / len(prompts)))] * ROUNDS
    with tqdm(total=ROUNDS * (1 + 2 * len(SHARES)), desc="screening", unit="batch", disable=not progress) as bar:
        made = Screen(lens, rounds, seconds, seed + FIRST_SEED, batch_size, sampling)
        bar.update(ROUNDS)
        if made.unusable:
            why = f"{made.unusable}, so the strength is not capped."
            return Capacity(float("nan"), tabled(trials), made.row_steps, why)
        tried = (strength * share for share in SHARES)
        found = next((one for one in tried if made.tolerated(where, one, range(ROUNDS), trials, bar)), 0.0)
        # Most screens end before all strengths were tried.
        bar.total = bar.n
    return Capacity(found, tabled(trials), made.row_steps)


def tabled(trials: Mapping[float, Trial]) -> pd.DataFrame:
    """Return one row per signed strength. A strength that was rejected early has fewer clips."""
    means = [(signed, np.mean(one.failed), np.mean(one.drift), len(one.failed)) for signed, one in trials.items()]
    return pd.DataFrame(means, columns=["strength", "failed", "drift", "clips"])
