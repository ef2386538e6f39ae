"""Tabulate the results of a study: its summary tables, the evidence, and the effect on every test prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.report import losses
from analysis.sweep import BASELINE
from analysis.sweep.response import KEYS

if TYPE_CHECKING:
    from analysis.study.result import Study

_LABELS = ("kind", "strategy", "layer", "strength", "pole", "prompt")


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """Return the summary tables by file name."""
    return {
        "outcome": pd.DataFrame([outcome.as_dict() for outcome in study.outcomes]),
        "by_prompt": by_prompt(study),
        "dose_response": study.response,
        "controls": study.controls,
        "cross_effects": study.cross,
        "scan": study.scan,
        "directions": directions(study),
        "cosines": study.cosines.to_frame(),
        "pca": study.components.summary(),
        "pca_points": study.components.to_frame(),
        "layer_attribution": study.layer_evidence().to_frame(),
        **({} if study.side_effects is None else {"lost": losses.with_effects(study.side_effects, study.response)}),
        **_where_tables(study),
    }


def directions(study: Study) -> pd.DataFrame:
    """Return a table of the directions' norms and evidence, with the permutation test of the norms."""
    table = study.directions.to_frame()
    if study.directions.samples is None:
        return table
    test = study.directions.permutation_test()
    return table.assign(times_shuffled=test.ratio.numpy(), permutation_p=test.p.numpy())


def _where_tables(study: Study) -> dict[str, pd.DataFrame]:
    tables = {} if study.placement is None else {"placement": study.placement.to_frame()}
    if study.where is not None:
        for name in ("windows", "components", "heads"):
            grid = getattr(study.where, name)
            if grid is not None:
                tables[f"patching_{name}"] = grid.to_frame()
        if study.where.words is not None:
            tables["attention_words"] = study.where.words.to_frame()
    return tables


def by_prompt(study: Study) -> pd.DataFrame:
    """Return the median effect over the seeds of each prompt, for steering and for prompts that ask for a pole.

    As in the study's results, an effect is relative to the unsteered clip of the same prompt and seed, clips that
    failed or that cannot be measured have an effect of 0, and pairs whose unsteered clip cannot be measured are left
    out.
    """
    clips = study.clips[(study.clips["split"] == "test") & study.clips["kind"].isin([BASELINE, "steered", "prompted"])]
    before = clips[clips["kind"] == BASELINE].set_index(KEYS)[study.measure]
    clips = clips[clips["kind"] != BASELINE]
    own = before.reindex(pd.MultiIndex.from_frame(clips[KEYS])).to_numpy(dtype=float)
    after = clips[study.measure].to_numpy(dtype=float)
    counted = np.isfinite(after) & ~clips["failed"].to_numpy(dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(counted, after / own - 1, 0.0)
    usable = np.isfinite(own) & (own > 0)
    table = clips[[*_LABELS]].assign(effect=effect)[usable]
    found = table.groupby([*_LABELS], sort=False, dropna=False)["effect"].agg(effect="median", seeds="size")
    return found.reset_index()
