"""Summarise the controls of a comparison: random directions and balanced shuffles, each kind as a whole.

One draw of a kind can be large or small by chance. `scores.py` calls these functions with the areas of all methods and
controls, prompt by prompt.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.methods.table import REFERENCE
from analysis.resampling import interval_of, resampled
from analysis.statistics import rank_test
from analysis.sweep.controls import BALANCED, RANDOM

CONTROLS = (RANDOM, BALANCED)
"""The kinds of control."""
COLUMNS = ("concept", "kind", "draws", "area", "area_low", "area_high", "lowest", "highest", "difference")
Areas = Mapping[str, Float[np.ndarray, " prompt"]]


def summaries(concept: str, cells: pd.DataFrame, areas: Areas, n_bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """Return one row per kind of control: the mean area over its draws, with an interval that resamples draws."""
    rows = []
    for kind, single in _by_kind(cells, areas).items():
        drawn = np.nanmean(single, axis=1)
        spread = np.array([drawn[at].mean() for at in resampled(np.arange(len(drawn)), n_bootstrap, seed)])
        interval = interval_of(spread, max(len(drawn), 2), n_clusters=len(drawn))
        values = (
            concept, kind, len(drawn), float(drawn.mean()), interval.low, interval.high, float(drawn.min()),
            float(drawn.max()), float(np.nanmean(single - areas[REFERENCE])),
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


def _by_kind(cells: pd.DataFrame, areas: Areas) -> dict[str, Float[np.ndarray, "draw prompt"]]:
    names = {kind: cells.loc[cells["kind"] == kind, "method"] for kind in CONTROLS}
    return {kind: np.stack([areas[name] for name in mine]) for kind, mine in names.items() if len(mine)}
