"""Tabulate the side effects of steering in each condition, next to the intended effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.report.words import number
from analysis.sweep import BASELINE

ANOTHER = "another seed"
_SAME = ("kind", "strategy", "layer", "strength", "pole")
_EFFECT = ("effect", "low", "high")


def with_effects(side_effects: pd.DataFrame, response: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `effect`, `low` and `high` of each condition to the table of side effects.

    `side_effects` comes from `analysis.study.side_effects.table`. The drift between two seeds of one prompt without
    steering has a separate row, of kind "another seed". In the baseline row, drift is 0, because this row compares the
    baseline with itself.
    """
    found = {_key(row): row for row in response.to_dict("records") if row["kind"] in set(side_effects["kind"])}
    rows: list[dict[Any, Any]] = []
    for row in side_effects.to_dict("records"):
        effect = {**row, **{name: found[_key(row)][name] for name in _EFFECT}}
        if row["kind"] == BASELINE:
            apart = {**dict.fromkeys(effect, np.nan), "kind": ANOTHER, "strategy": None, "pole": None}
            rows += [{**effect, "drift": 0.0}, {**apart, "drift": row["drift"], "clips": row["clips"]}]
        else:
            rows.append(effect)
    table = pd.DataFrame(rows)
    return table[[*_SAME, *_EFFECT, *(name for name in table.columns if name not in (*_SAME, *_EFFECT))]]


def words(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Format a row of `with_effects` for the page."""
    if row["kind"] == BASELINE:
        label = "unsteered"
    elif row["kind"] == ANOTHER:
        label = "unsteered, another seed"
    elif row["kind"] == "prompted":
        label = f"prompted for “{row['pole']}”"
    else:
        label = f"{row['strategy']} {number(row['strength'], '+g')}"
    forms = {
        "effect": "+.0%", "low": "+.0%", "high": "+.0%", "failed": ".0%", "rms_ratio": ".0%", "onsets": ".0f",
        "entropy_ratio": ".0%", "drift": ".3f", "frechet": ".3g",
    }  # fmt: skip
    shown = {name: number(row[name], form, "–") for name, form in forms.items()}
    if row["kind"] == BASELINE:
        # The baseline is the reference for all other rows, so it has no interval and no distance from itself.
        shown |= {"effect": "0%", "low": "–", "drift": "0", "frechet": "–"}
    shown["interval"] = "–" if shown["low"] == "–" else f"{shown['low']} to {shown['high']}"
    return {"kind": row["kind"], "label": label, **shown}


def _key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row[name]) else row[name] for name in _SAME)
