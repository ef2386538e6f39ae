"""Put the outcomes of several studies into one table, and pool those of the same concept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from analysis.comparison.result import StudyComparison
from analysis.comparison.slopes import Slope, fit_slopes
from analysis.pooling import pooled
from analysis.study import finished
from analysis.study.result import Study
from analysis.study.test_result import corrected
from analysis.sweep import BASELINE
from analysis.sweep.response import KEYS
from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.files.atomic import as_path

_READ = ("estimator", "source", "site", "position", "noise")
"""Fields of a direction's provenance that are compared."""
_VARIATION = (
    "n_clips", "n_prompts", "between_prompts", "level_between_prompts", "level_between_seeds", "residual",
)  # fmt: skip
Fit = tuple[Slope, Slope] | str
"""The slopes towards the positive and the negative pole, or the reason why there are none."""


@guarded
def compare(
    studies: Sequence[Study | str | os.PathLike[str]], *, names: Sequence[str] | None = None
) -> StudyComparison:
    """Compare the outcomes of studies, and pool the effects on each concept over the studies of it.

    Within each study, a mixed model (`fit_slopes`) estimates the change towards either pole at the chosen strength.
    Over studies of the same concept and measure, these changes are pooled by a random-effects model
    (`analysis.pooling`). Studies that have unsteered test clips in common (of one model, with the same seeds) are
    compared, but not pooled, because they are not independent. The p-values against controls are corrected for all
    poles of all compared studies (Holm).

    Args:
        studies: studies, folders of studies, or folders of several studies (`audiolens study --concepts`).
        names: a name for each study [default: the folder's name, or the model and the concept].

    Raises:
        InputError: if no study is given, a folder contains none, the same study is given twice, or the number of
            names is wrong.
    """
    found = list(_opened(studies))
    if not found:
        raise InputError("no study is given: give at least one study, or its folder.")
    labels = _distinct([name for name, _ in found]) if names is None else _checked_names(names, len(found))
    opened = [one for _, one in found]
    _refuse_repeated(labels, opened)
    joint = iter(corrected([outcome for one in opened for outcome in one.outcomes]))
    fits = [_fitted(one) for one in opened]
    rows = [
        row
        for name, one, fit in zip(labels, opened, fits, strict=True)
        for row in _rows(name, one, (next(joint), next(joint)), fit)
    ]
    shared = _sharing(labels, opened)
    dependent = {_subject(one) for name, one in zip(labels, opened, strict=True) if name in {*chain(*shared)}}
    return StudyComparison(
        table=pd.DataFrame(rows),
        pooled=_pooled(opened, fits, dependent),
        shared=tuple(shared),
        variation=pd.DataFrame(_variation(labels, opened, fits)),
        differences=_differences(opened),
        names=tuple(labels),
        weights=tuple(one.directions.meta.weights for one in opened),
    )


def _opened(studies: Sequence[Study | str | os.PathLike[str]]) -> Iterator[tuple[str, Study]]:
    if isinstance(studies, Study | str | os.PathLike):
        raise InputTypeError("studies: expected a list of studies or folders, not a single one.")
    for one in studies:
        if isinstance(one, Study):
            yield f"{one.model} {one.concept}", one
        elif isinstance(one, str | os.PathLike):
            for folder in finished.study_folders(as_path(one)):
                yield str(folder), finished.load_folder(folder)
        else:
            raise InputTypeError(f"studies: expected studies or folders, not {type(one).__name__}.")


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that differ, and number names that are equal."""
    parts = [Path(name).parts for name in names]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        ends = ["/".join(one[-count:]) for one in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{name} ({names[: at + 1].count(name)})" if names.count(name) > 1 else name for at, name in
            enumerate(names)]  # fmt: skip


def _checked_names(names: Sequence[str], count: int) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise InputTypeError(f"names={shown(names)}: expected a list of texts.")
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"names: expected {count} different names, one per study; got {shown(list(names))}.")
    return list(names)


def _refuse_repeated(names: Sequence[str], studies: Sequence[Study]) -> None:
    """Raise an error if two studies have the same steered test clips: one study would be compared with itself."""
    seen: dict[tuple[str, str, int], str] = {}
    for name, one in zip(names, studies, strict=True):
        mine = _tested(one)
        values = mine[mine["kind"] == "steered"][[*KEYS, "strength", one.measure]].sort_values([*KEYS, "strength"])
        key = (one.concept, one.directions.meta.weights, int(pd.util.hash_pandas_object(values, index=False).sum()))
        if key in seen:
            raise InputError(f"{shown(name)} and {shown(seen[key])} have the same clips: give each study once.")
        seen[key] = name


def _sharing(names: Sequence[str], studies: Sequence[Study]) -> list[tuple[str, str]]:
    """Return the pairs of studies of one concept that have unsteered test clips in common."""
    clips = [
        {(one.directions.meta.weights, *row) for row in _unsteered(one).itertuples(index=False, name=None)}
        for one in studies
    ]
    return [
        (names[first], names[second])
        for first, second in combinations(range(len(names)), 2)
        if _subject(studies[first]) == _subject(studies[second]) and clips[first] & clips[second]
    ]


def _unsteered(study: Study) -> pd.DataFrame:
    mine = _tested(study)
    return mine[mine["kind"] == BASELINE][[*KEYS, study.measure]].dropna()


def _subject(study: Study) -> tuple[str, ...]:
    """What studies must have in common to be pooled."""
    return (study.concept, study.measure, *study.poles)


def _tested(study: Study) -> pd.DataFrame:
    """Return the clips of the test without steering, and steered at the chosen place."""
    clips = study.clips[study.clips["split"] == "test"]
    steered = (clips["kind"] == "steered") & (clips["strategy"] == study.choice.strategy)
    return clips[(clips["kind"] == BASELINE) | steered]


def _fitted(study: Study) -> Fit:
    """Return the slopes towards both poles at the chosen place on test prompts, or the reason why there are none."""
    try:
        return fit_slopes(_tested(study), study.measure, study.choice.strength)
    except InputError as error:
        return str(error)


def _rows(name: str, study: Study, outcomes: Sequence[Any], fit: Fit) -> Iterator[dict[str, Any]]:
    """Yield a row for each pole at the chosen place, and for each pole at other strategies' places."""
    common = {"study": name, "model": study.model, "concept": study.concept, "measure": study.measure}
    slopes = (None, None) if isinstance(fit, str) else fit
    for outcome, own, slope in zip(outcomes, study.outcomes, slopes, strict=True):
        ranks = {"p_controls": outcome.p_controls, "p_corrected": outcome.p_corrected, "n_controls": outcome.n_controls}
        yield {
            **common, "pole": outcome.pole, "chosen": True, "strategy": study.choice.strategy,
            "layer": study.choice.layer, "strength": outcome.strength, "effect": outcome.effect, "low": outcome.low,
            "high": outcome.high, "failed": outcome.failed, "median": outcome.median, "prompted": outcome.prompted,
            **ranks, "testable": outcome.testable, "claimable": outcome.claimable, "alone": own.claimable,
            **_slope_columns(slope),
        }  # fmt: skip
    mine = study.response[study.response["kind"] == "alternative"]
    for row in mine.to_dict("records"):
        places = {"strategy": row["strategy"], "layer": row["layer"], "strength": row["strength"]}
        numbers = {key: row[key] for key in ("effect", "low", "high", "failed", "median")}
        yield {**common, "pole": study.poles[0 if row["strength"] > 0 else 1], "chosen": False, **places, **numbers}


def _slope_columns(slope: Slope | None) -> dict[str, float]:
    if slope is None:
        return {}
    return {"slope": slope.value, "slope_low": slope.low, "slope_high": slope.high, "slope_p": slope.p}


def _pooled(studies: Sequence[Study], fits: Sequence[Fit], dependent: set[tuple[str, ...]]) -> pd.DataFrame:
    """Return one row for each concept, measure and pole of which at least two studies have a fit.

    Studies in `dependent` share clips, so they are not pooled.
    """
    groups: dict[tuple[str, ...], list[tuple[str, Slope]]] = {}
    for one, fit in zip(studies, fits, strict=True):
        if isinstance(fit, str) or _subject(one) in dependent:
            continue
        for pole, slope in zip(one.poles, fit, strict=True):
            if slope.converged:
                groups.setdefault((*_subject(one), pole), []).append((one.directions.meta.weights, slope))
    rows = []
    for (concept, measured, _, _, pole), members in groups.items():
        if len(members) < 2:
            continue
        slopes = [slope for _, slope in members]
        both = pooled([one.scaled for one in slopes], [one.stderr for one in slopes])
        back = slopes[0].from_scale
        rows.append(
            {
                "concept": concept, "measure": measured, "pole": pole, "studies": both.n,
                "models": len({weights for weights, _ in members}), "effect": back(both.value),
                "low": back(both.low), "high": back(both.high), "tau": both.tau,
                "p_heterogeneity": float(stats.chi2.sf(both.q, both.n - 1)),
            }
        )  # fmt: skip
    columns = ["concept", "measure", "pole", "studies", "models", "effect", "low", "high", "tau", "p_heterogeneity"]
    return pd.DataFrame(rows, columns=columns)


def _variation(names: Sequence[str], studies: Sequence[Study], fits: Sequence[Fit]) -> Iterator[dict[str, Any]]:
    """Yield, for each study and pole, how much clips vary between prompts and seeds, on the scale of the fit."""
    for name, one, fit in zip(names, studies, fits, strict=True):
        facts: dict[str, Any] = {"study": name, "concept": one.concept, "measure": one.measure}
        if isinstance(fit, str):
            yield {**facts, "note": fit}
            continue
        for pole, slope in zip(one.poles, fit, strict=True):
            yield {
                **facts, "pole": pole, **{name: getattr(slope, name) for name in _VARIATION},
                "note": "" if slope.converged else "the fit did not converge, so the slope has no interval.",
            }  # fmt: skip


def _differences(studies: Sequence[Study]) -> Mapping[str, tuple[str, ...]]:
    """Return everything that was set differently, as one text per study."""
    facts = [
        {
            **{name: value for name, value in asdict(one.settings).items()},
            **{f"directions: {name}": getattr(one.directions.meta, name) for name in _READ},
            "model": one.model, "weights": one.directions.meta.weights[:12], "concept": one.concept,
            "measure": one.measure, "strategy": one.choice.strategy, "block": one.choice.layer,
            "strength": one.choice.strength,
        }
        for one in studies
    ]  # fmt: skip
    texts = {name: tuple(str(one[name]) for one in facts) for name in facts[0]}
    return {name: values for name, values in texts.items() if len(set(values)) > 1}
