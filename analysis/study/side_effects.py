"""Measure the side effects of steering, which are failed clips, drift in likelihood, and Fréchet distance.

`score` runs the clips through the unsteered model again, and the scores are stored as a stage. `table` summarises the
scores per condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.store import parquet
from analysis.study.settings import Settings
from analysis.sweep import BASELINE, SweepResult
from analysis.sweep.response import LOST
from audiolens import measure
from audiolens.errors import InputError
from audiolens.files.integrity import content_of

if TYPE_CHECKING:
    from audiolens import AudioLens

KINDS = (BASELINE, "steered", "alternative", "prompted")
_LABELS = ["kind", "strategy", "layer", "strength", "pole"]
_FILE = "lost.parquet"
_COLUMNS: Mapping[str, parquet.Kind] = {
    "condition": "text", "prompt": "text", "seed": "number", "nats": "number", "frechet": "number",
}  # fmt: skip
_CRITERIA = [one for one in LOST if one != "failed"]


def score(lens: AudioLens, tested: SweepResult, settings: Settings) -> pd.DataFrame:
    """Score every clip of the baseline, steered and prompted conditions under the unsteered model, one row per clip.

    `nats` is the clip's negative log-likelihood per code. `frechet` is the Fréchet distance between the condition's
    clips and the unsteered clips in the codec's features, repeated in all rows of the condition. The distance is NaN if
    the settings do not request it or there are too few clips.
    """
    rows, reference = [], None
    names = tested.table[tested.table["kind"].isin(KINDS)]
    for condition, mine in names.groupby("condition", sort=False):
        codes = tested.codes(str(condition))
        nats = measure.code_nats(
            lens, list(mine["asked"]), codes, guidance_scale=settings.guidance_scale,
            temperature=settings.temperature or 1.0,
        )  # fmt: skip
        distance = float("nan")
        if settings.frechet:
            features = measure.codec_features(lens, codes)
            reference = features if condition == BASELINE else reference
            if condition != BASELINE and reference is not None:
                try:
                    distance = measure.frechet_distance(lens, reference, features)
                except InputError:
                    # With too few clips, the distance would be mostly bias.
                    distance = float("nan")
        rows.append(
            mine[["condition", "prompt", "seed"]].assign(nats=nats.mean(dim=(1, 2)).double().numpy(), frechet=distance)
        )
    return pd.concat(rows, ignore_index=True)


def table(clips: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """Return a summary of the side effects, with one row per condition.

    The columns are `failed` (the share of failed clips), `rms_ratio`, `onsets` and `entropy_ratio` (medians), `nats`
    (the mean), `drift` and `frechet`.

    `drift` is the mean over clips of |nats - nats of the unsteered clip of the same prompt and seed|. In the baseline
    row it is the mean absolute difference between two seeds of one prompt, which measures seed-to-seed variation
    without steering (NaN with one seed per prompt). Prompted clips are scored under the prompt that asks for the pole.
    """
    own = scored[scored["condition"] == BASELINE].set_index(["prompt", "seed"])["nats"]
    rows_of = clips.groupby("condition", sort=False).indices
    rows = []
    for condition, nats in scored.groupby("condition", sort=False):
        mine = clips.iloc[rows_of[condition]]
        if condition == BASELINE:
            apart = [abs(a - b) for _, one in nats.groupby("prompt") for a, b in combinations(one["nats"], 2)]
            drift = float(np.mean(apart)) if apart else float("nan")
        else:
            before = own.reindex(pd.MultiIndex.from_frame(nats[["prompt", "seed"]])).to_numpy()
            drift = float(np.abs(nats["nats"].to_numpy() - before).mean())
        rows.append(
            {
                **mine[_LABELS].iloc[0].to_dict(),
                "failed": float(mine["failed"].mean()),
                **{name: float(mine[name].median()) for name in _CRITERIA},
                "nats": float(nats["nats"].mean()),
                "drift": drift,
                "frechet": float(nats["frechet"].iloc[0]),
                "clips": len(mine),
            }
        )
    return pd.DataFrame(rows)


def write(scored: pd.DataFrame, folder: Path) -> None:
    """Write the scores as Parquet."""
    scored.to_parquet(folder / _FILE, index=False)


def read(folder: Path) -> pd.DataFrame:
    """Read the scores that `write` stored."""
    return parquet.read(folder / _FILE, content_of(folder / _FILE), _COLUMNS)[0]
