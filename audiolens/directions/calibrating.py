"""Measure the dose-response of a direction at one place: `Directions.calibrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from audiolens import measure as measures
from audiolens import prompts as prompt_sets
from audiolens.checks import checked_amount, checked_count, checked_flags, in_order, shown
from audiolens.directions.calibration import PLACE, Calibration, normal_place
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer, steered_blocks
from audiolens.errors import InputError, nearest
from audiolens.files.integrity import tensor_hash
from audiolens.lens import AudioLens
from audiolens.measure.targets import refuse_unordered
from audiolens.tracing.generation import Generation

MOST_FAILED = 0.2
"""Strengths at which a larger share of the clips fails, or cannot be measured, are left out of a calibration."""
N_STRENGTHS = 9
WIDEST = 2.0
"""The default strengths reach from minus to plus this number, divided by the number of blocks that are steered."""


def calibrate(
    directions: Directions,
    lens: AudioLens,
    measure: str,
    *,
    strengths: Sequence[float] | None,
    prompts: Sequence[str] | None,
    seeds: int,
    seconds: float,
    guidance_scale: float,
    batch_size: int,
    progress: bool,
    steering: Mapping[str, Any],
) -> Directions:
    """See `Directions.calibrate`."""
    checked_flags(progress=progress)
    refuse_unordered(measure)
    n_seeds = checked_count("seeds", seeds)
    for name in steering:
        if name not in PLACE:
            raise InputError(f"calibrate takes no {name}=.{nearest(name, PLACE)} A place is {', '.join(PLACE)}.")
    place = normal_place(steering, directions.layers, directions.meta.n_layers)
    refuse_other_operators(place)
    directions.meta.refuse_other(lens)
    if strengths is None and place["strategy"] == "heads":
        raise InputError("strategy='heads' needs strengths=, such as [-8, -4, -2, 2, 4, 8].")
    widest = WIDEST / len(steered_blocks(steer(directions, **place)))
    grid = (
        np.linspace(-widest, widest, N_STRENGTHS).tolist()
        if strengths is None
        else in_order("strengths", strengths, "numbers")
    )
    grid = sorted({checked_amount("strengths", one) for one in grid} | {0.0})
    if len(grid) < 3:
        raise InputError(f"strengths={shown(strengths)}: expected at least two besides 0.")
    texts = neutral(directions, lens) if prompts is None else in_order("prompts", prompts, "texts")
    rows = [(text, seed) for text in texts for seed in range(n_seeds)]
    made: list[Generation] = []
    for one in grid:
        clips = lens.generate(
            [text for text, _ in rows], seconds, seeds=[seed for _, seed in rows], guidance_scale=guidance_scale,
            interventions=steer(directions, **{**place, "strength": one}) if one else (), batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        made.append(clips)
        # The next strength begins with the rows that fitted in memory.
        batch_size = clips.settings.get("at_once", batch_size)
    base = made[grid.index(0.0)]
    values = np.stack([measured(one, measure) for one in made])
    failed = np.stack([measures.failed(one, base) for one in made])
    curve = _curve(np.array(grid), values, failed)
    return replace(
        directions,
        calibration=Calibration(
            measure=measure,
            measured_in=measures.UNITS[measure],
            **curve,
            place={name: value for name, value in place.items() if value != PLACE[name] or name == "strategy"},
            seconds=float(seconds),
            guidance_scale=float(guidance_scale),
            vectors_hash=tensor_hash(directions.vectors),
        ),
    )


def measured(clips: Generation, measure: str) -> np.ndarray:
    """Return a measure of every clip; NaN where it is undefined."""
    return measures.table(clips, measures=[measure])[measure].to_numpy(dtype=float)


def neutral(directions: Directions, lens: AudioLens) -> list[str]:
    """Return the neutral development prompts of the concept that directions are named after."""
    if directions.meta.label in prompt_sets.concepts():
        found = [*prompt_sets.load(directions.meta.label, lens=lens).development]
        if found:
            return found
    raise InputError(
        f"there are no neutral prompts for directions named {shown(directions.meta.label)}: give prompts=[...]."
    )


def _curve(grid: np.ndarray, values: np.ndarray, failed: np.ndarray) -> dict[str, Any]:
    """Return the medians over clips that did not fail, made monotone, at the strengths that few clips fail at."""
    from sklearn.isotonic import IsotonicRegression

    values = np.where(failed, np.nan, values)
    lost = ~np.isfinite(values)
    heard = lost.mean(1) <= MOST_FAILED
    if not heard[grid == 0].all() or heard.sum() < 2:
        raise InputError(
            f"the calibration has too few strengths at which at most {MOST_FAILED:.0%} of the clips fail or cannot be "
            f"measured: {shown(grid[heard].tolist())}. Give smaller strengths, or longer clips."
        )
    low, median, high = np.nanquantile(values[heard], [0.25, 0.5, 0.75], axis=1)
    grid = grid[heard]
    fitted = IsotonicRegression(increasing=_rises(grid, median)).fit_transform(grid, median)
    return {
        "strengths": grid.tolist(), "values": fitted.tolist(), "low": low.tolist(), "high": high.tolist(),
        "failed": failed.mean(1)[heard].tolist(), "clips": int((~lost[heard]).sum(1).min()),
    }  # fmt: skip


def _rises(grid: np.ndarray, median: np.ndarray) -> bool:
    return float(np.polyfit(grid, median, 1)[0]) >= 0


def refuse_other_operators(place: Mapping[str, Any]) -> None:
    """Raise an error unless a strength of 0 changes nothing, and a larger one adds more."""
    if place["operator"] != "add":
        raise InputError(f"operator={shown(place['operator'])}: only 'add' is calibrated or steered to a target.")
