"""Compute the effect of every condition on a measure, relative to the baseline clips of the same prompt and seed.

The functions take a sweep's table and need no model. `sweep.SweepResult` and `study` call them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.resampling import Resampling
from analysis.statistics import effect
from analysis.sweep.concept_measures import MEASURED as MEASURED
from analysis.sweep.concept_measures import is_ratio
from analysis.sweep.concept_measures import unit_of_change as unit_of_change
from analysis.sweep.conditions import BASELINE
from analysis.sweep.controls import KINDS, UNBALANCED
from audiolens import measure
from audiolens.checks import numbers_of, shown
from audiolens.door import guarded
from audiolens.errors import InputError, nearest
from audiolens.groups import takes
from audiolens.measure.table import checked_measures

LOST = ("rms_ratio", "onsets", "entropy_ratio", "failed")
"""Columns that describe damage to a clip."""
CONTROLS = (*KINDS, UNBALANCED)
"""The kinds of condition that steer along a control direction."""
KEYS = ["prompt", "seed"]


def checked_names(measures: Sequence[str], also: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of measures.

    Raises:
        InputError: if a measure is unknown or cannot be computed here, or if a further column has the name of a column
            of the sweep.
    """
    names = checked_measures(measures or ())
    measure.refuse_lacking(names)
    taken = {*measure.MEASURES, *measure.EXTRA_MEASURES, *LOST, "file"} & set(also)
    if taken:
        raise InputError(f"also: {', '.join(sorted(taken))} are the sweep's own column names: choose others.")
    return tuple(names)


@guarded
@takes("resampling", Resampling, keeps=["seed"])
def effects(
    table: pd.DataFrame,
    measured: str,
    n_bootstrap: int = 1000,
    further: Sequence[str] = (),
    *,
    resampling: Resampling | None = None,
) -> pd.DataFrame:
    """Return the effect of every condition on a measure, relative to the baseline clips of the same prompt and seed.

    The table has one row per condition, with its labels and further columns. `median` is the median of the measure over
    clips that did not fail. `effect`, `low`, `high` and `mean_change` come from `statistics.effect`. `failed` is the
    share of failed clips. `left_out` is the number of pairs without a baseline value, which are excluded from `effect`
    and `failed`. `clips` is the number of clips. An effect is a ratio minus 1, or a difference if `is_ratio` is false.
    It is NaN if no baseline could be measured. Controls have no interval, because only their effects are used. Each
    column in `further` is summarised by its median. If one of them is `nats` (nats per code under the unsteered model),
    the column `drift` is added, which is the mean over clips of |nats - nats of the baseline|. `resampling` is a
    `Resampling` with `n_bootstrap` and `seed`. The coverage of the intervals is always `CONFIDENCE`
    (`analysis/resampling.py`).
    """
    if measured not in table:
        known = [name for name in (*measure.MEASURES, *further) if name in table]
        raise InputError(f"{shown(measured)} was not measured.{nearest(measured, known)} Measured: {', '.join(known)}.")
    if unknown := [name for name in further if name not in table]:
        raise InputError(
            f"further: {shown(unknown[0])} is not a column.{nearest(str(unknown[0]), map(str, table.columns))}"
        )
    if words := [name for name in further if not pd.api.types.is_numeric_dtype(table[name])]:
        raise InputError(f"further: {shown(words[0])} is not a column of numbers.")
    if not pd.api.types.is_bool_dtype(table["failed"]) or table["failed"].hasnans:
        raise InputError(f"failed: expected True or False in every row, not {table['failed'].dtype}.")
    own = table[table["condition"] == BASELINE].set_index(KEYS)
    columns = [measured, *(["nats"] if "nats" in further else [])]
    pairs = own[columns].reindex(pd.MultiIndex.from_frame(table[KEYS])).to_numpy(dtype=float)
    numbers = {*measure.MEASURES, *LOST, *further, "asked", "file", *KEYS}
    labels = [column for column in table.columns if column not in numbers]
    conditions = list(table.groupby("condition", sort=False).indices.values())
    # Every column is taken from the table once. With hundreds of conditions, taking all columns of each is slow.
    labelled = table[labels].iloc[[at[0] for at in conditions]].to_dict("records")
    after, failed = numbers_of(measured, table[measured]), table["failed"].to_numpy(dtype=bool)
    prompts = _in_order(table["prompt"])
    losses = {name: numbers_of(name, table[name]) for name in further}
    rows = []
    for at, common in zip(conditions, labelled, strict=True):
        sound = pd.Series(after[at[~failed[at]]])
        lost = {name: float(pd.Series(values[at]).median()) for name, values in losses.items()}
        if "nats" in lost:
            lost["drift"] = float(np.mean(np.abs(losses["nats"][at] - pairs[at, 1])))
        draws = 0 if common.get("kind") in CONTROLS else n_bootstrap
        how = Resampling(n_bootstrap=draws, seed=None if resampling is None else resampling.seed)
        rows.append(
            {
                **common,
                "median": float(sound.median()) if sound.notna().any() else float("nan"),
                **_effect(after[at], pairs[at, 0], prompts[at], failed[at], is_ratio(measured), how),
                **lost,
                "clips": len(at),
            }
        )
    return pd.DataFrame(rows)


def _effect(
    after: Float[np.ndarray, " row"],
    before: Float[np.ndarray, " row"],
    prompts: Int[np.ndarray, " row"],
    failed: Bool[np.ndarray, " row"],
    relative: bool,
    resampling: Resampling,
) -> dict[str, float]:
    usable = np.isfinite(before) & ((before > 0) | (not relative))
    if not usable.any():
        nothing = float("nan")
        return {
            "effect": nothing,
            "low": nothing,
            "high": nothing,
            "mean_change": nothing,
            "failed": float(failed.mean()),
            "left_out": len(after),
        }
    found = effect(after, before, prompts, failed, relative, resampling=resampling)
    return {
        "effect": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "mean_change": found.mean,
        "failed": found.failed_share,
        "left_out": found.n_left_out,
    }


def _in_order(prompts: pd.Series) -> Int[np.ndarray, " row"]:
    """Return the rank of each row's prompt in the order of their texts, in which `effect` draws clusters."""
    codes, found = pd.factorize(prompts, use_na_sentinel=False)
    texts = np.asarray(found)
    return np.unique(texts.astype(str) if texts.dtype == object else texts, return_inverse=True)[1][codes]
