"""Find a strength that the chosen place tolerates, by generating a few short steered clips.

Alignment and gain are computed at a small strength and on fixed codes. They do not show at which strength generated
music breaks down. `screen` therefore generates the same clips without steering and with steering of either sign,
starting at the strength whose shift matches that of naming the pole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from analysis.placement.other_evidence import generated_steps
from analysis.placement.shifts import Candidate
from audiolens import measure
from audiolens.model.timeline import longest_seconds
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens import AudioLens, Generation

ROUNDS, SEEDS = 2, 2
"""A strength is tested in two rounds, with two clips per prompt and sign in each. The second round follows only if few
clips of the first failed."""
FIRST_SEED = 20_000
"""Added to the caller's seed, so that the screen does not repeat the clips on which the place was chosen."""
SHARES = (1.0, 0.5, 0.25)
"""The strengths that are tried, relative to the first."""
MOST_FAILED = 0.05
"""The largest share of failed clips that is tolerated."""
MOST_DRIFT = 3.0
"""The largest drift that is tolerated, as a multiple of the difference between two seeds of one prompt."""


@dataclass(frozen=True, eq=False)
class Capacity:
    """The strength that a place tolerates.

    Attributes:
        strength: the largest strength that was tried and tolerated with both signs. It is 0 if none was, and NaN if the
            criteria do not apply, because unsteered clips fail as well.
        tried: one row per strength and sign, in the order in which they were tried. The columns are `strength`
            (signed), `failed` (the share of failed clips, see `measure.failed`), `drift` (see `MOST_DRIFT`) and
            `clips`, their number.
        row_steps: number of decoder steps, summed over rows.
    """

    strength: float
    tried: pd.DataFrame
    row_steps: int


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

    A strength is tolerated if, for each sign, at most `MOST_FAILED` of the clips of both rounds fail and the drift is
    at most `MOST_DRIFT`. It is rejected as soon as too many clips of either sign have failed.
    """
    prefix = lens.config.prefix(max(map(len, lens.text_tokens(list(prompts)))))
    drawing = replace(sampling, seconds=min(seconds, longest_seconds(lens.config, prefix)))
    asked = list(prompts) * SEEDS
    most = int(MOST_FAILED * len(asked) * ROUNDS)
    cost = 2 * generated_steps(lens, len(asked), drawing.seconds)
    bar = tqdm(total=ROUNDS * (1 + 2 * len(SHARES)), desc="screening", unit="batch", disable=not progress)

    def generated(signed: float, number: int) -> _Batch:
        first = seed + FIRST_SEED + number * len(asked)
        clips = lens.generate(
            asked, interventions=where.steps(signed) if signed else [], seeds=list(range(first, first + len(asked))),
            sampling=drawing, batch_size=batch_size,
        )  # fmt: skip
        bar.update()
        return _Batch(clips, _nats(lens, clips, drawing))

    with bar:
        bases = [generated(0.0, 0)]
        between_seeds = _between_seeds(bases[0].nats, len(prompts))
        if measure.failed(bases[0].clips, bases[0].clips).mean() > MOST_FAILED or between_seeds == 0:
            return Capacity(float("nan"), _table({}), cost)
        bases += [generated(0.0, number) for number in range(1, ROUNDS)]
        between_seeds = np.mean([_between_seeds(base.nats, len(prompts)) for base in bases])
        rows: dict[float, list[tuple[float, float]]] = {}

        def tolerated(amount: float) -> bool:
            for number, base in enumerate(bases):
                for signed in (amount, -amount):
                    clips, nats = generated(signed, number)
                    failed = measure.failed(clips, base.clips)
                    drift = np.abs(nats - base.nats) / between_seeds
                    rows.setdefault(signed, []).extend(zip(failed.astype(float), drift, strict=True))
                    if not _few(rows[signed], most):
                        return False
            return True

        found = next((strength * share for share in SHARES if tolerated(strength * share)), 0.0)
    return Capacity(found, _table(rows), cost * (ROUNDS + sum(map(len, rows.values())) // len(asked)))


class _Batch(NamedTuple):
    """Clips, and the mean nats per code of each clip under the unsteered model."""

    clips: Generation
    nats: Float[np.ndarray, " row"]


def _between_seeds(nats: Float[np.ndarray, " row"], n_prompts: int) -> float:
    """Return the mean difference between the clips of one prompt."""
    return float(np.mean([np.ptp(nats[row::n_prompts]) for row in range(n_prompts)]))


def _few(rows: list[tuple[float, float]], most: int) -> bool:
    """Return whether few enough of the clips have failed, and whether the drift is small enough."""
    failed, drift = zip(*rows, strict=True)
    return sum(failed) <= most and float(np.mean(drift)) <= MOST_DRIFT


def _nats(lens: AudioLens, clips: Generation, drawing: Sampling) -> Float[np.ndarray, " row"]:
    """Return the mean negative log-likelihood per code of each clip under the unsteered model, in nats."""
    nats = measure.code_nats(
        lens, clips.prompts, clips.codes, guidance_scale=drawing.guidance_scale, temperature=drawing.temperature or 1.0
    )
    return nats.mean(dim=(1, 2)).double().numpy()


def _table(rows: Mapping[float, list[tuple[float, float]]]) -> pd.DataFrame:
    """Return one row per signed strength. A strength that was given up early has fewer clips."""
    means = [(signed, *np.mean(clips, axis=0), len(clips)) for signed, clips in rows.items()]
    return pd.DataFrame(means, columns=["strength", "failed", "drift", "clips"])
