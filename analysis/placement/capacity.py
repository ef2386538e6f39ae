"""Find a strength that the chosen place tolerates, by generating a few short steered clips.

Alignment and gain are computed at a small strength and on fixed codes. They do not show at which strength generated
music breaks down. `screen` therefore generates the same clips without steering and with steering of either sign,
starting at the strength whose shift matches that of naming the pole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from analysis.placement.other_evidence import generated_steps
from analysis.placement.shifts import Candidate
from analysis.statistics import CHOSEN_FAILED
from audiolens import measure
from audiolens.model.timeline import longest_seconds
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens import AudioLens, Generation

SEEDS = 2
"""Number of clips per prompt and sign."""
FIRST_SEED = 20_000
"""Added to the caller's seed, so that the screen does not repeat the clips on which the place was chosen."""
TRIES = 4
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
            `tolerated`.
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
    """Return the largest strength tolerated at a place: `strength`, or a smaller one found by halving it.

    A strength is tolerated if, for both signs, at most `CHOSEN_FAILED` of the clips fail and the drift is at most
    `MOST_DRIFT`. The strength is halved until it is tolerated. If one of the `TRIES` is left, a strength between the
    tolerated one and the last rejected one is tested.
    """
    prefix = lens.config.prefix(max(map(len, lens.text_tokens(list(prompts)))))
    drawing = replace(sampling, seconds=min(seconds, longest_seconds(lens.config, prefix)))
    asked = list(prompts) * SEEDS
    seeds = [seed + FIRST_SEED + row for row in range(len(asked))]
    cost = 2 * generated_steps(lens, len(asked), drawing.seconds)
    bar = tqdm(total=1 + 2 * TRIES, desc="screening", unit="batch", disable=not progress)

    def generated(signed: float) -> Generation:
        edits = where.steps(signed) if signed else []
        clips = lens.generate(asked, interventions=edits, seeds=seeds, sampling=drawing, batch_size=batch_size)
        bar.update()
        return clips

    with bar:
        base = generated(0.0)
        nats = _nats(lens, base, drawing)
        between_seeds = np.mean([np.ptp(nats[row :: len(prompts)]) for row in range(len(prompts))])
        if measure.failed(base, base).mean() > CHOSEN_FAILED or between_seeds == 0:
            return Capacity(float("nan"), _table([]), cost)
        rows: list[tuple[float, float, float, bool]] = []

        def tolerated(amount: float) -> bool:
            for signed in (amount, -amount):
                clips = generated(signed)
                failed = float(measure.failed(clips, base).mean())
                drift = float(np.abs(_nats(lens, clips, drawing) - nats).mean() / between_seeds)
                rows.append((signed, failed, drift, failed <= CHOSEN_FAILED and drift <= MOST_DRIFT))
            return rows[-1][-1] and rows[-2][-1]

        best = next((at for at in range(TRIES) if tolerated(strength / 2**at)), None)
        found = 0.0 if best is None else strength / 2**best
        if best is not None and 0 < best < TRIES - 1 and tolerated(between := found * 2**0.5):
            found = between
    # Every clip is generated once and scored once, both with guidance.
    return Capacity(found, _table(rows), cost * (1 + len(rows)))


def _nats(lens: AudioLens, clips: Generation, drawing: Sampling) -> Float[np.ndarray, " row"]:
    """Return the mean negative log-likelihood per code of each clip under the unsteered model, in nats."""
    nats = measure.code_nats(
        lens, clips.prompts, clips.codes, guidance_scale=drawing.guidance_scale, temperature=drawing.temperature or 1.0
    )
    return nats.mean(dim=(1, 2)).double().numpy()


def _table(rows: list[tuple[float, float, float, bool]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["strength", "failed", "drift", "tolerated"])
