"""Build a `Study` from the results of its stages, which `pipeline` computes and `finished` reads from a folder.

This module does not need a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import pca, similarity
from analysis.pca import PCAResult
from analysis.placement import Placement
from analysis.study import scan, side_effects, test_result
from analysis.study.result import Study
from analysis.study.scan import Choice
from analysis.study.settings import Settings
from analysis.study.where import Where
from analysis.sweep import BASELINE, SweepResult
from audiolens import measure
from audiolens.directions.directions import Directions

_NUMBERS, _TEXTS = ("layer", "draw", "cosine"), ("strategy", "pole", "other")
"""Labels that some conditions lack."""


@dataclass(frozen=True, eq=False)
class StudyParts:
    """The results of a study's stages.

    `tried` maps stage names to the sweeps from which the place and strength are chosen. `controlled` is the sweep of
    the controls. It is `None` in folders written by earlier versions, where `tested` includes the controls.
    """

    directions: Directions
    where: Where | None
    placement: Placement | None
    tried: Mapping[str, SweepResult]
    tested: SweepResult
    scored: pd.DataFrame
    controlled: SweepResult | None = None


def assembled(
    parts: StudyParts,
    concept: str,
    poles: tuple[str, str],
    settings: Settings,
    model: str,
    seconds: Mapping[str, float],
) -> Study:
    """Build the study from its parts. `seconds` is the time that each stage took."""
    measured, tested = settings.measure_of(concept), parts.tested
    choice, alternatives, scanned = chosen(parts.tried, parts.placement, settings, measured)
    response, same_clips = tested.effects(measured), None
    clips = [*(one.table for one in parts.tried.values()), tested.table]
    if parts.controlled is not None:
        controls = parts.controlled.table
        found = parts.controlled.effects(measured, n_bootstrap=0)
        response = _joined([response, found[found["kind"] != BASELINE]])
        same_clips = test_result.on_same_clips(tested.table, controls, measured)
        # The sweep of the controls repeats baseline clips of the test, so these are left out.
        clips.append(controls[controls["kind"] != BASELINE])
    sweeps = (*parts.tried.values(), tested, parts.controlled)
    return Study(
        concept=concept,
        poles=poles,
        measure=measured,
        directions=parts.directions,
        cosines=similarity.cosine_map(parts.directions),
        components=_components(parts.directions, poles),
        scan=scanned,
        choice=choice,
        alternatives=alternatives,
        response=response,
        outcomes=test_result.outcomes(response, poles, choice, same_clips),
        monotonicity=test_result.monotonicity(response),
        cross=test_result.cross_effects(tested.table, measures=[*dict.fromkeys((measured, *test_result.CROSSED))]),
        clips=_own_first(_joined(clips).drop(columns="file", errors="ignore"), measured),
        sounds=_sounds(tested),
        settings=settings,
        model=model,
        sample_rate=tested.sample_rate,
        seconds=dict(seconds),
        where=parts.where,
        placement=parts.placement,
        side_effects=side_effects.table(tested.table, parts.scored),
        runs=tuple(run for one in sweeps if one is not None for run in one.runs),
    )


def chosen(
    tried: Mapping[str, SweepResult], placed: Placement | None, settings: Settings, measured: str
) -> tuple[Choice, tuple[Choice, ...], pd.DataFrame]:
    """Return the chosen place and strength, the best choice of every other strategy, and the compared effects."""
    effects = {name: one.effects(measured, n_bootstrap=0).assign(stage=name) for name, one in tried.items()}
    if placed is None:
        choice = scan.choose(effects["scan"])
        left = [other for other in settings.strengths if other != choice.strategy]
        others = [scan.choose(effects["scan"], other) for other in left]
    else:
        at_place = [scan.choose(effects["strength"], one["strategy"]) for one in places(placed, settings)]
        choice, others = at_place[0], at_place[1:]
    return choice, tuple(others), pd.concat(effects.values(), ignore_index=True)


def places(placed: Placement, settings: Settings) -> list[dict[str, Any]]:
    """Return the place that the evidence selects, and the same block with the other strategies."""
    return [placed.where, *scan.other_strategies(placed.where, settings.strengths)]


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join tables by rows. A label that a table lacks becomes NaN in its rows, and numeric labels stay numeric."""
    found = pd.concat(tables, ignore_index=True)
    # A column without any text contains only missing numbers, as in `clips.parquet`.
    for name in (*_NUMBERS, *_TEXTS):
        if name in found:
            column = found[name].mask(found[name].isna(), np.nan)
            found[name] = pd.to_numeric(column) if name in _NUMBERS or column.isna().all() else column
    return found


def _own_first(table: pd.DataFrame, measured: str) -> pd.DataFrame:
    """Put the study's own measure before the other measures."""
    others = [name for name in table if name != measured]
    first = next((place for place, name in enumerate(others) if name in measure.MEASURES), len(others))
    return table[[*others[:first], measured, *others[first:]]]


def _components(directions: Directions, poles: tuple[str, str]) -> PCAResult:
    samples = directions.samples
    assert samples is not None
    labels = [poles[0] if positive else poles[1] for positive in samples.labels.tolist()]
    return pca.fit(samples.values.numpy(), labels, layers=directions.layers)


def _sounds(tested: SweepResult) -> dict[tuple[str, str, int], np.ndarray]:
    """Return the clips kept as sound, as a map from (condition, prompt, seed) to an array "channel sample"."""
    keys = tested.table[["condition", "prompt", "seed"]].itertuples(index=False, name=None)
    found = {key: tested.sound(row) for row, key in enumerate(keys)}
    return {key: samples for key, samples in found.items() if samples is not None}
