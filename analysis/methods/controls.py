"""Summarise the controls of a comparison: random directions and balanced shuffles, each kind as a whole.

One draw of a kind can be large or small by chance. `scores.py` calls these functions with the areas of all methods and
controls, prompt by prompt.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from analysis.methods.table import REFERENCE
from analysis.resampling import CONFIDENCE
from analysis.statistics import rank_test
from analysis.sweep.controls import BALANCED, RANDOM

CONTROLS = (RANDOM, BALANCED)
"""The kinds of control."""
COLUMNS = ("concept", "kind", "draws", "area", "area_low", "area_high", "lowest", "highest", "difference")
Areas = Mapping[str, Float[np.ndarray, " prompt"]]


def summaries(concept: str, cells: pd.DataFrame, areas: Areas) -> list[dict[str, Any]]:
    """Return one row per kind of control: the mean area over its draws, with its interval over draws."""
    rows = []
    for kind, single in _by_kind(cells, areas).items():
        drawn = np.nanmean(single, axis=1)
        values = (
            concept, kind, len(drawn), float(drawn.mean()), *_interval(drawn), float(drawn.min()), float(drawn.max()),
            float(np.nanmean(single - areas[REFERENCE])),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def compared(cells: pd.DataFrame, areas: Areas) -> dict[str, Float[np.ndarray, " prompt"]]:
    """Return the areas that are tested: those of methods and of prompting, and the mean of each kind of control.

    With a test for every draw, the correction for the number of tests, and thus the p-values of methods, would depend
    on how many controls there are.
    """
    methods = cells.loc[~cells["kind"].isin(CONTROLS), "method"]
    means = {kind: single.mean(0) for kind, single in _by_kind(cells, areas).items()}
    return {**{name: areas[name] for name in methods}, **means}


def ranked(areas: Mapping[str, float], kinds: Mapping[str, str], name: str) -> dict[str, float]:
    """Return the p-values of the area of a method, or of prompting, among those of the controls of each kind."""
    found = {}
    for kind in CONTROLS:
        drawn = [area for other, area in areas.items() if kinds[other] == kind]
        tested = len(drawn) > 0 and kinds[name] not in CONTROLS
        found[f"p_{kind}"] = rank_test(areas[name], drawn).p if tested else float("nan")
    return found


def _interval(drawn: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """Return Student's interval of the mean over draws, which are independent; NaN for a single draw.

    Resampling two or three draws would give no more than the range of these.
    """
    if len(drawn) < 2:
        return float("nan"), float("nan")
    error = drawn.std(ddof=1) / np.sqrt(len(drawn))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(drawn) - 1) * error)
    return float(drawn.mean()) - reach, float(drawn.mean()) + reach


def _by_kind(cells: pd.DataFrame, areas: Areas) -> dict[str, Float[np.ndarray, "draw prompt"]]:
    names = {kind: cells.loc[cells["kind"] == kind, "method"] for kind in CONTROLS}
    return {kind: np.stack([areas[name] for name in mine]) for kind, mine in names.items() if len(mine)}
