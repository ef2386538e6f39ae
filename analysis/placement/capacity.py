"""Find a strength that the chosen place tolerates, by generating a few short steered clips.

Alignment and gain are computed at a small strength and on fixed codes. They do not show at which strength generated
music breaks down. `screen` therefore generates the same clips without steering and with steering of either sign,
starting at the strength whose shift matches that of naming the pole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

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
"""A strength is tested in two rounds, with two clips per prompt and sign in each round. The second round follows only
if few clips of the first round failed."""
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


class Screen:
    """Generates the clips of a screen. The clips of a round have the same prompts and seeds at every strength."""

    def __init__(
        self, lens: AudioLens, prompts: Sequence[str], seconds: float, seed: int, batch_size: int, sampling: Sampling
    ) -> None:
        prefix = lens.config.prefix(max(map(len, lens.text_tokens(list(prompts)))))
        self.lens, self.prompts, self.batch_size = lens, list(prompts) * SEEDS, batch_size
        self.sampling = replace(sampling, seconds=min(seconds, longest_seconds(lens.config, prefix)))
        self.first_seed = seed + FIRST_SEED
        self.row_steps = 0
        self.rounds = [self.generated([], number) for number in range(ROUNDS)]
        self.sound = [~measure.failed(one.clips, one.clips) for one in self.rounds]
        """Which clips of a round do not fail without steering. Only these clips are compared."""
        by_prompt = np.concatenate([one.nats.reshape(SEEDS, -1) for one in self.rounds])
        self.between_seeds = float(np.mean([abs(a - b) for a, b in combinations(by_prompt, 2)]))

    @property
    def left_out(self) -> str:
        """Why strengths cannot be compared, or an empty string."""
        clips = np.concatenate(self.sound)
        if clips.mean() < LEAST_SOUND:
            return f"{(~clips).sum()} of {len(clips)} unsteered clips already fail, so the strength is not capped."
        if self.between_seeds == 0:
            return "clips of different seeds are equal, so the strength is not capped."
        return ""

    def generated(self, steps: list[Intervention], number: int) -> _Batch:
        """Generate the clips of a round and score them."""
        rows = len(self.prompts)
        first = self.first_seed + number * rows
        clips = self.lens.generate(
            self.prompts, interventions=steps, seeds=list(range(first, first + rows)), sampling=self.sampling,
            batch_size=self.batch_size,
        )  # fmt: skip
        nats = measure.code_nats(
            self.lens, clips.prompts, clips.codes, guidance_scale=self.sampling.guidance_scale,
            temperature=self.sampling.temperature or 1.0, batch_size=self.batch_size,
        )  # fmt: skip
        # Every clip is generated once and scored once, both with guidance.
        self.row_steps += 2 * generated_steps(self.lens, rows, float(self.sampling.seconds or 0))
        return _Batch(clips, nats.mean(dim=(1, 2)).double().numpy())

    def broken(self, steps: list[Intervention], number: int) -> tuple[list[float], list[float]]:
        """Return, for every clip of a round, whether steering broke it (1 or 0) and its drift."""
        base, sound = self.rounds[number], self.sound[number]
        try:
            batch = self.generated(steps, number)
        except ActivationOverflow:
            return [1.0] * int(sound.sum()), [float("inf")] * int(sound.sum())
        failed, drift = measure.failed(batch.clips, base.clips), np.abs(batch.nats - base.nats) / self.between_seeds
        return failed[sound].astype(float).tolist(), drift[sound].tolist()


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
    at most `MOST_DRIFT`. It is rejected as soon as too many clips of either sign have failed. Clips that fail without
    steering are not counted.
    """
    rows: dict[float, tuple[list[float], list[float]]] = {}
    with tqdm(total=ROUNDS * (1 + 2 * len(SHARES)), desc="screening", unit="batch", disable=not progress) as bar:
        made = Screen(lens, prompts, seconds, seed, batch_size, sampling)
        bar.update(ROUNDS)
        if made.left_out:
            return Capacity(float("nan"), _table(rows), made.row_steps, made.left_out)
        most = int(SCREEN_FAILED * np.concatenate(made.sound).sum())

        def tolerated(amount: float) -> bool:
            for number in range(ROUNDS):
                for signed in (amount, -amount):
                    failed, drift = rows.setdefault(signed, ([], []))
                    for total, new in zip((failed, drift), made.broken(where.steps(signed), number), strict=True):
                        total.extend(new)
                    bar.update()
                    if sum(failed) > most:
                        return False
            return all(np.mean(rows[signed][1]) <= MOST_DRIFT for signed in (amount, -amount))

        found = next((strength * share for share in SHARES if tolerated(strength * share)), 0.0)
        # Most screens end before all strengths were tried.
        bar.total = bar.n
    return Capacity(found, _table(rows), made.row_steps)


def _table(rows: Mapping[float, tuple[list[float], list[float]]]) -> pd.DataFrame:
    """Return one row per signed strength. A strength that was rejected early has fewer clips."""
    means = [(signed, np.mean(failed), np.mean(drift), len(failed)) for signed, (failed, drift) in rows.items()]
    return pd.DataFrame(means, columns=["strength", "failed", "drift", "clips"])
