"""Readings: what the place in time and the half of the guidance at which a direction is read do to it.

A mean over time carries, beside what the prompts ask for, how many of its frames hold an onset, so that a direction
of tempo can be one of busyness; the start token has heard nothing but the text. The table lays the readings side by
side on the very same clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from audiolens import measure
from audiolens.directions import Directions, difference_in_means
from audiolens.errors import InputError
from audiolens.interventions import Branch
from audiolens.prompts import PromptSet
from audiolens.reading import Position

if TYPE_CHECKING:
    from audiolens import AudioLens

POSITIONS: tuple[Position, ...] = ("mean", "first", "last")
BRANCHES: tuple[Branch, ...] = ("cond", "null", "both")


def compare(
    lens: AudioLens,
    sets: PromptSet,
    *,
    positions: Sequence[Position] = POSITIONS,
    branches: Sequence[Branch] = BRANCHES,
    seconds: float = 2.0,
    guidance_scale: float = 3.0,
    prompts: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """One row per position, branch and layer.

    Columns:
        norm: length of the difference of means, and `relative_norm`, in mean lengths of the activations there.
        separation, auc, split_half_cosine, stable_at: as in `Evidence`.
        cosine: to the direction of the first position and branch at that layer (the mean of the conditional half).
        onset_correlation: Spearman's between a clip's projection on the direction and its onsets per second, within
            either pole and then averaged: what the reading carries of busyness beside the poles' difference.

    `null` is read too, where only the codes drawn so far can tell the poles apart; at "first" it is the same for all
    prompts, its direction zero, and its columns NaN. It does not show which reading steers best: that takes a sweep.

    Args:
        positions, branches: as in `difference_in_means`; the first of each is what the others are compared with.
        seconds, guidance_scale: of the clips, prompt i of either pole drawn from seed i.
        prompts: of each pole; `None` is all.
    """
    if not positions or not branches:
        raise InputError(f"positions={list(positions)}, branches={list(branches)}: give at least one of each.")
    poles = [list(side[:prompts]) for side in (sets.positive, sets.negative)]
    made: dict[str, Any] = {"guidance_scale": guidance_scale, "batch_size": batch_size, "progress": progress}
    codes = [
        lens.generate(side, seconds, seeds=list(range(len(side))), decode=False, **made).codes.cpu() for side in poles
    ]
    rates = np.concatenate([_onset_rates(lens, clip) for side in codes for clip in side.split(batch_size)])
    frames, reference = [], None
    for position in positions:
        for branch in branches:
            found = difference_in_means(
                lens,
                poles[0],
                poles[1],
                position=position,
                branch=branch,
                codes=(codes[0], codes[1]),
                keep_samples=True,
                **made,
            )
            reference = found if reference is None else reference
            frames.append(_rows(found, reference, rates).assign(position=str(position), branch=branch))
    table = pd.concat(frames, ignore_index=True)
    return table[["position", "branch", *[name for name in table.columns if name not in ("position", "branch")]]]


def within_poles(
    projections: np.ndarray,
    rates: np.ndarray,
    labels: np.ndarray,
) -> float:
    """Spearman's correlation within the positive and within the negative rows, averaged; NaN where nothing varies."""
    found = []
    for pole in (True, False):
        mine = (labels == pole) & np.isfinite(rates)
        x, y = projections[mine], rates[mine]
        varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
        found.append(float(spearmanr(x, y).statistic) if varied else float("nan"))  # pyright: ignore[reportAttributeAccessIssue]
    return float(np.mean(found))


def _rows(found: Directions, reference: Directions, rates: np.ndarray) -> pd.DataFrame:
    table = found.to_frame()
    table.insert(2, "relative_norm", table["norm"] / table["residual_norm"])
    table["cosine"] = found.cosine(reference).numpy()
    samples = found.samples
    assert samples is not None
    along = torch.einsum("lpd,ld->lp", samples.values, found.unit().vectors).double().numpy()
    table["onset_correlation"] = [within_poles(layer, rates, samples.labels.numpy()) for layer in along]
    # What is left where prompts cannot be told apart is rounding, not a direction.
    nothing = table["relative_norm"] < 1e-5
    told = ["split_half_cosine", "separation", "auc", "stable_at", "cosine", "onset_correlation"]
    table = table.astype(dict.fromkeys(told, float))
    table.loc[nothing, told] = float("nan")
    return table


def _onset_rates(lens: AudioLens, codes: torch.Tensor) -> np.ndarray:
    audio = lens.decode_codes(codes).float().cpu().numpy()
    return np.atleast_1d(measure.onset_rate(audio, lens.config.sample_rate))
