"""Score the clips of a comparison: one row per condition, and one row per method and concept.

All numbers of a concept are computed on the same bootstrap draws of its prompts, so that methods are compared on equal
clips. The units of effects and areas (the spread of the unsteered clips, and the drift between seeds) are the same in
every draw. The functions take tables of clips and need no model. `compare` calls `scored`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.methods import controls
from analysis.methods.area import weights
from analysis.methods.reading import Place
from analysis.methods.result import MethodsResult
from analysis.methods.table import OTHER_SEEDS, REFERENCE
from analysis.resampling import Interval, Resampling, interval_of, resampled
from analysis.statistics import correct, means
from analysis.sweep import response
from analysis.sweep.concept_measures import is_ratio
from analysis.sweep.conditions import BASELINE
from audiolens.errors import InputError

LIMIT = 0.5
"""The default limit of the area: half as much drift again as between two seeds of a prompt."""
LEAST_RATIO = 0.01
TARGETS = (-0.5, 0.5)
"""The targets of the calibration error, in standard deviations of the unsteered clips."""
_FEW = 1e-9


@dataclass(frozen=True, eq=False)
class Played:
    """The clips of a concept, and what is known about its methods.

    Attributes:
        measured: the column of the concept's own measure.
        measures: the columns of all measures.
        left_out: methods that do not apply to the concept, and why.
        seconds: the time that it took to compute each method's direction, or NaN.
        distances: how far each condition is from the baseline, by name of the distance and condition: `frechet`, and,
            if a CLAP model was given, `clap` and `lpaps`.
        table: the clips of all conditions, with a column `nats`.
    """

    concept: str
    measured: str
    measures: tuple[str, ...]
    place: Place
    left_out: Mapping[str, str]
    seconds: Mapping[str, float]
    distances: Mapping[str, Mapping[str, float]]
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _Clips:
    """The clips of a concept as arrays over conditions and prompts (means over the seeds of a prompt).

    Attributes:
        labels: concept, method, kind and dose of each condition.
        changes: by measure, the change from the baseline in standard deviations of the unsteered clips. Ratios are
            compared by their logarithms. A clip that failed or could not be measured counts as no change; a clip
            without a baseline value is NaN.
        drift: |nats per code - that of the baseline|.
        failed: the share of failed clips.
        unmeasured: the share of clips that did not fail and have no own measure, although their baselines have one.
        prompts: the number of prompts.
    """

    labels: pd.DataFrame
    changes: Mapping[str, Float[np.ndarray, "condition prompt"]]
    drift: Float[np.ndarray, "condition prompt"]
    failed: Float[np.ndarray, "condition prompt"]
    unmeasured: Float[np.ndarray, "condition prompt"]
    prompts: int

    @classmethod
    def of(cls, played: Played) -> _Clips:
        table = played.table
        names = list(dict.fromkeys(table["condition"]))
        keyed = table.set_index(["condition", "prompt", "seed"]).sort_index()
        clips = keyed.loc[BASELINE].index
        texts = list(dict.fromkeys(clips.get_level_values("prompt")))
        which = np.array([texts.index(one) for one in clips.get_level_values("prompt")])

        def grid(column: str) -> Float[np.ndarray, "condition clip"]:
            return np.stack([keyed.loc[name, column].reindex(clips).to_numpy(float) for name in names])

        def by_prompt(values: Float[np.ndarray, "condition clip"]) -> Float[np.ndarray, "condition prompt"]:
            parts = [values[:, which == number] for number in range(len(texts))]
            known = [np.isfinite(one).sum(1) for one in parts]
            sums = [np.nansum(one, axis=1) for one in parts]
            return np.stack([np.where(n, s / np.maximum(n, 1), np.nan) for n, s in zip(known, sums, strict=True)], 1)

        at, failed, nats = names.index(BASELINE), grid("failed"), grid("nats")
        changes = {name: by_prompt(_change(grid(name), at, failed > 0, is_ratio(name))) for name in played.measures}
        if not np.isfinite(changes[played.measured][at]).any():
            raise InputError(
                f"{played.concept}: {played.measured} has the same value, or none, in all unsteered clips, so effects "
                "have no unit: give another measure, or more prompts."
            )
        own = grid(played.measured)
        unmeasured = np.where(np.isfinite(own[at]), (failed == 0) & ~np.isfinite(own), np.nan)
        labels = table.drop_duplicates("condition")[["condition", "concept", "method", "kind", "dose"]]
        drift = np.abs(nats - nats[at])
        parts = by_prompt(drift), by_prompt(failed), by_prompt(unmeasured)
        return cls(labels.reset_index(drop=True), changes, *parts, len(texts))

    def rows(self, method: str) -> list[int]:
        """The conditions of a method by ascending dose."""
        mine = self.labels[self.labels["method"] == method].sort_values("dose")
        return [int(one) for one in mine.index]


def _change(
    values: Float[np.ndarray, "condition clip"], at: int, failed: np.ndarray, ratio: bool
) -> Float[np.ndarray, "condition clip"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(values) if ratio else values
        before = np.where(np.isfinite(scaled[at]), scaled[at], np.nan)
        change = scaled - before
    if ratio:
        # The logarithm of 0 is infinite, and would be taken for a clip that could not be measured.
        change = np.maximum(change, np.log(LEAST_RATIO))
    change = np.where(failed | ~np.isfinite(values), 0.0, change)
    spread = np.nanstd(before, ddof=1) if np.isfinite(before).sum() > 1 else np.nan
    return np.where(np.isfinite(before) & (spread > _FEW), change / np.where(spread > _FEW, spread, 1.0), np.nan)


def scored(
    played: Sequence[Played], *, model: str, limit: float, n_bootstrap: int, n_permutations: int, seed: int
) -> MethodsResult:
    """Score every condition and every method of every concept."""
    clips = [_Clips.of(one) for one in played]
    count = min(one.prompts for one in clips)
    drawn = [np.bincount(one, minlength=count) for one in resampled(np.arange(count), n_bootstrap, seed)]
    draws = np.stack([np.ones(count), *drawn])
    other = np.concatenate([one.drift[one.labels["kind"] == OTHER_SEEDS] for one in clips])
    floor = _mean(draws, other).mean(1)
    if not floor[0] > 0:
        raise InputError("clips of other seeds have the same likelihood as the unsteered ones, so drift has no unit.")
    conditions, cells, summaries, tests, every = [], [], [], [], []
    for one, mine in zip(played, clips, strict=True):
        conditions.append(_conditions(one, mine, draws, floor, Resampling(n_bootstrap=n_bootstrap, seed=seed)))
        found, areas = _cells(one, mine, draws, floor, limit)
        cells.append(found)
        summaries += controls.summaries(one.concept, found, areas)
        every.append(controls.compared(found, areas))
        tests += _tested(one.concept, every[-1], n_permutations, seed)
    tested = pd.DataFrame(tests, columns=["concept", "method", "p"])
    tested = tested.assign(p_holm=_corrected(tested["p"].to_numpy(float)))
    table = pd.concat(cells, ignore_index=True).merge(tested, on=["concept", "method"], how="left")
    summary = pd.DataFrame(summaries, columns=list(controls.COLUMNS)).merge(
        tested.rename(columns={"method": "kind"}), on=["concept", "kind"], how="left"
    )
    left_out = {(one.concept, name): why for one in played for name, why in one.left_out.items()}
    return MethodsResult(
        table=table, conditions=pd.concat(conditions, ignore_index=True), controls=summary,
        overall=_overall(every, draws, n_permutations, seed, cells[0]), model=model, limit=limit,
        seed_drift=float(floor[0]), n_prompts=count, places={one.concept: one.place for one in played},
        measured={one.concept: one.measured for one in played}, left_out=left_out,
    )  # fmt: skip


def _mean(
    draws: Float[np.ndarray, "draw prompt"], values: Float[np.ndarray, "*cell prompt"]
) -> Float[np.ndarray, "draw *cell"]:
    """The mean over prompts that have a value, in every draw."""
    there = np.isfinite(values)
    flat = np.where(there, values, 0.0).reshape(-1, values.shape[-1])
    sizes = draws @ there.reshape(flat.shape).T.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(sizes > 0, draws @ flat.T / sizes, np.nan)
    return found.reshape(len(draws), *values.shape[:-1])


def _interval(values: Float[np.ndarray, " draw"], prompts: int) -> Interval:
    """The interval of a statistic whose first draw is the observed one."""
    return interval_of(values[1:][np.isfinite(values[1:])], max(prompts, 2))


def _named(name: str, values: Float[np.ndarray, " draw"], prompts: int) -> dict[str, float]:
    interval = _interval(values, prompts)
    return {name: float(values[0]), f"{name}_low": interval.low, f"{name}_high": interval.high}


def _conditions(
    one: Played, clips: _Clips, draws: np.ndarray, floor: np.ndarray, resampling: Resampling
) -> pd.DataFrame:
    """One row per condition: effects in the measure's unit and in standard deviations, and what else changed."""
    table = one.table
    natural = response.effects(table, one.measured, further=("nats",), resampling=resampling)
    natural = natural.set_index("condition")[["effect", "low", "high", "median"]]
    loud = response.effects(table, "loudness", 0).set_index("condition")["mean_change"]
    drift, failed = _mean(draws, clips.drift), clips.failed.mean(1)
    own = _mean(draws, clips.changes[one.measured])
    rows = []
    for at, labels in enumerate(clips.labels.to_dict("records")):
        name = labels["condition"]
        rows.append(
            {
                **labels, **natural.loc[name].to_dict(), **_named("change", own[:, at], clips.prompts),
                **_named("drift", drift[:, at] / floor, clips.prompts),
                "loudness_db": float(loud[name]), "failed": float(failed[at]),
                "unmeasured": float(np.nanmean(clips.unmeasured[at])),
                **{far: by_condition[name] for far, by_condition in one.distances.items()},
                **{f"on {other}": float(_mean(draws[:1], values)[0, at]) for other, values in clips.changes.items()},
                "clips": int((table["condition"] == name).sum()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _cells(
    one: Played, clips: _Clips, draws: np.ndarray, floor: np.ndarray, limit: float
) -> tuple[pd.DataFrame, dict[str, Float[np.ndarray, " prompt"]]]:
    """One row per method of a concept, and the areas of its single prompts."""
    rows = {name: clips.rows(name) for name in dict.fromkeys(clips.labels["method"]) if name not in ("", OTHER_SEEDS)}
    single = {name: _areas(clips, at, one.measured, floor[0], limit) for name, at in rows.items()}
    areas = {name: _mean(draws, values) for name, values in single.items()}
    kinds = {name: str(clips.labels.loc[at[0], "kind"]) for name, at in rows.items()}
    methods = [name for name, kind in kinds.items() if kind == "method"]
    # In a draw of prompts that all lack the measure, no method is the best.
    together = np.stack([areas[name] for name in methods])[:, 1:]
    together = together[:, np.isfinite(together).all(0)]
    wins = dict(zip(methods, (together >= together.max(0)).mean(1), strict=True)) if together.size else {}
    found = [
        {
            "concept": one.concept, "method": name, "kind": kinds[name],
            **_named("area", areas[name], clips.prompts),
            **_named("difference", _mean(draws, single[name] - single[REFERENCE]), clips.prompts),
            "best_share": float(wins.get(name, np.nan)), **_described(one, clips, at, draws, floor),
            "prompts": int(np.isfinite(single[name]).sum()), "seconds": one.seconds.get(name, np.nan),
            **controls.ranked({other: float(mine[0]) for other, mine in areas.items()}, kinds, name),
        }
        for name, at in rows.items()
    ]  # fmt: skip
    return pd.DataFrame(found), single


def _described(one: Played, clips: _Clips, at: list[int], draws: np.ndarray, floor: np.ndarray) -> dict[str, Any]:
    """The columns of a method that describe its clips."""
    labels = clips.labels.loc[at]
    doses = labels["dose"].to_numpy(float)
    ends = [int(doses.argmin()), int(doses.argmax())]
    outer = np.array(at)[ends]
    change, drift = clips.changes[one.measured][outer], _mean(draws[:1], clips.drift[outer])[0] / floor[0]
    far = _mean(draws[:1], change)[0]
    selectivity = _ratio(*_selectivity(clips, at, doses, one.measured, draws))
    return {
        "change_down": float(far[0]), "change_up": float(far[1]),
        "drift_down": float(drift[0]), "drift_up": float(drift[1]),
        **_named("selectivity", selectivity, clips.prompts),
        "monotone": _monotone(clips.changes[one.measured][at], doses),
        "calibration_error": _calibration(clips.changes[one.measured][at], doses),
        "failed": float(clips.failed[at].mean()),
        "unmeasured": float(np.nanmean(clips.unmeasured[at])),
        **{
            far: float(np.mean([by_condition[str(labels["condition"].iloc[end])] for end in ends]))
            for far, by_condition in one.distances.items()
        },
        "clips": int(one.table["condition"].isin(labels["condition"]).sum()),
    }  # fmt: skip


def _ratio(own: Float[np.ndarray, " draw"], other: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    return np.divide(own, other, out=np.full_like(own, np.nan), where=other > 0)


def _areas(clips: _Clips, at: Sequence[int], measured: str, floor: float, limit: float) -> Float[np.ndarray, " prompt"]:
    """The area of each prompt's own curve, averaged over both signs."""
    doses = clips.labels.loc[list(at), "dose"].to_numpy(float)
    rising = np.array(at)[np.argsort(np.abs(doses))]
    found = []
    for sign in (-1.0, 1.0):
        mine = rising[clips.labels.loc[rising, "dose"].to_numpy(float) * sign > 0]
        excess = clips.drift[mine].T / floor - 1
        found.append((weights(excess, limit) * sign * clips.changes[measured][mine].T).sum(-1))
    return np.mean(found, axis=0)


def _selectivity(
    clips: _Clips, at: Sequence[int], doses: np.ndarray, measured: str, draws: np.ndarray
) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """The mean effect on the own measure, and the largest mean |change| of another measure."""
    own = (_mean(draws, clips.changes[measured][list(at)]) * np.sign(doses)).mean(1)
    others = [values[list(at)] for name, values in clips.changes.items() if name != measured]
    rest = [np.abs(_mean(draws, values)).mean(1) for values in others]
    # A measure without a value does not count, and without any other measure there is no selectivity.
    return own, np.fmax.reduce([np.full(len(own), np.nan), *rest])


def _monotone(changes: Float[np.ndarray, "dose prompt"], doses: Float[np.ndarray, " dose"]) -> float:
    """The share of steps between neighbouring doses, no dose among them, that go up; ties count half."""
    known = changes[:, np.isfinite(changes).all(0)]
    steps = np.diff(np.insert(known, int(np.searchsorted(doses, 0.0)), 0.0, axis=0), axis=0)
    return float(((np.sign(steps) + 1) / 2).mean())


def _calibration(changes: Float[np.ndarray, "dose prompt"], doses: Float[np.ndarray, " dose"]) -> float:
    """The mean distance from the targets, at doses that the other half of the prompts chose.

    NaN if fewer than two prompts have a value.
    """
    place = int(np.searchsorted(doses, 0.0))
    steps = np.insert(doses, place, 0.0)
    known = changes[:, np.isfinite(changes).all(0)]
    if known.shape[1] < 2:
        return float("nan")
    halves = [np.insert(known[:, start::2].mean(1), place, 0.0) for start in (0, 1)]
    errors = []
    for first, second in (halves, halves[::-1]):
        # A target out of reach takes the outermost dose.
        chosen = np.interp(TARGETS, _rising(first), steps)
        errors += list(np.abs(np.interp(chosen, steps, second) - TARGETS))
    return float(np.mean(errors))


def _rising(values: Float[np.ndarray, " dose"]) -> Float[np.ndarray, " dose"]:
    from sklearn.isotonic import isotonic_regression

    return isotonic_regression(values)


def _tested(
    concept: str, areas: Mapping[str, Float[np.ndarray, " prompt"]], n_permutations: int, seed: int
) -> list[dict[str, Any]]:
    """The p-value of every method's paired difference from the reference, by flipping the signs of whole prompts."""
    names = [name for name in areas if name != REFERENCE]
    if not names:
        return []
    apart = np.stack([areas[name] - areas[REFERENCE] for name in names], axis=1)
    found = means(apart, np.arange(len(apart)), n_bootstrap=0, n_permutations=n_permutations, seed=seed)
    return [{"concept": concept, "method": name, "p": float(p)} for name, p in zip(names, found.p, strict=True)]


def _corrected(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's correction of the p-values that exist."""
    found, known = np.full(len(p), np.nan), np.isfinite(p)
    if known.any():
        found[known] = correct(p[known])
    return found


def _overall(
    every: Sequence[Mapping[str, Float[np.ndarray, " prompt"]]],
    draws: np.ndarray,
    n_permutations: int,
    seed: int,
    cells: pd.DataFrame,
) -> pd.DataFrame:
    """One row per method that steers all concepts, and per kind of control: each prompt's mean area over concepts.

    All concepts have the same prompts, so that prompts remain the unit that is resampled and flipped.
    """
    names = [name for name in every[0] if all(name in one for one in every)]
    single = {name: _over_concepts([one[name] for one in every]) for name in names}
    apart = {name: _over_concepts([one[name] - one[REFERENCE] for one in every]) for name in names}
    p = {row["method"]: row["p"] for row in _tested("", apart, n_permutations, seed)}
    kinds, prompts = dict(zip(cells["method"], cells["kind"], strict=True)), draws.shape[1]
    rows = [
        {
            "method": name, "kind": kinds.get(name, name), **_named("area", _mean(draws, single[name]), prompts),
            **_named("difference", _mean(draws, apart[name]), prompts), "p": p.get(name, np.nan),
        }
        for name in names
    ]  # fmt: skip
    found = pd.DataFrame(rows)
    return found.assign(p_holm=_corrected(found["p"].to_numpy(float)))


def _over_concepts(values: Sequence[Float[np.ndarray, " prompt"]]) -> Float[np.ndarray, " prompt"]:
    """The mean over the concepts that have a value."""
    stacked = np.stack(values)
    known = np.isfinite(stacked).sum(0)
    return np.where(known, np.nansum(stacked, axis=0) / np.maximum(known, 1), np.nan)
