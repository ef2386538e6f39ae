"""How far the clips of every condition are from the unsteered clips of the same prompts and seeds, by CLAP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from analysis.sweep.conditions import BASELINE
from analysis.sweep.result import SweepResult
from audiolens.measure.clap import Clap, clap_distance

if TYPE_CHECKING:
    from audiolens import AudioLens

COLUMNS = ("clap", "lpaps")
ROWS = 16
"""The number of clips that are decoded at a time."""


def distances(lens: AudioLens, swept: SweepResult, clap: Clap) -> dict[str, dict[str, float]]:
    """Return the mean distance of every condition from the baseline, by `COLUMNS` and condition."""
    base, rows = swept.codes(BASELINE), {clip: row for row, clip in enumerate(_clips(swept, BASELINE))}
    found: dict[str, dict[str, float]] = {name: {BASELINE: 0.0} for name in COLUMNS}
    for condition in dict.fromkeys(swept.table["condition"]):
        if condition == BASELINE:
            continue
        same = base[[rows[clip] for clip in _clips(swept, condition)]]
        mean = _mean(lens, swept.codes(condition), same, clap)
        for name in COLUMNS:
            found[name][condition] = mean[name]
    return found


def _clips(swept: SweepResult, condition: str) -> list[tuple[str, int]]:
    """The prompt and seed of each clip of a condition, in the order of its codes."""
    mine = swept.table[swept.table["condition"] == condition]
    return list(zip(mine["prompt"], mine["seed"], strict=True))


def _mean(
    lens: AudioLens, codes: Int[Tensor, "row codebook frame"], base: Int[Tensor, "row codebook frame"], clap: Clap
) -> dict[str, float]:
    total: dict[str, float] = dict.fromkeys(COLUMNS, 0.0)
    for start in range(0, len(codes), ROWS):
        here, there = (lens.decode_codes(side[start : start + ROWS]).cpu() for side in (codes, base))
        apart = clap_distance(here, there, lens.config.sample_rate, model=clap)
        for name in COLUMNS:
            total[name] += float(apart[name].sum()) / len(codes)
    return total
