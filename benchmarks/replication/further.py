"""Measure one model further: every concept by one call, places by brute force, and the paper's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import concepts
import numpy as np
import pandas as pd
import selectivity
from brute_force import HALVINGS, OWN, Truth, chosen_strengths, failure_of, with_spoilt

from analysis import study as studies
from analysis.placement.capacity import MOST_DRIFT
from analysis.placement.rules import place_name
from analysis.resampling import resampled
from analysis.statistics import MOST_FAILED
from analysis.study import scan
from analysis.study.settings import TEST_SEED
from analysis.sweep import BASELINE
from analysis.sweep.response import KEYS
from audiolens import Directions
from replication.estimates import Estimate, changes, mean, steered
from replication.measuring import Model, Numbers
from replication.sizes import MAIN, PAPER_DOSES, SCANNED

_CALLED = ("seconds", "development", "test", "call_seeds", "called", "labelled")
_SCANNED = ("seconds", "development", "development_seeds", "poles")
_PAPER = ("seconds", "poles", "development", "development_seeds", "test", "test_seeds")
_PLACED_ON = 8
"""The most prompts on which a concept is placed."""
_AGAIN = 200
"""Resamples of the prompts to see how certain the best block is."""


def called(model: Model) -> tuple[Numbers, dict[str, str]]:
    """Effects of every concept by one call of `placement.place`, and the name of the place that it chose."""

    def make() -> tuple[Numbers, dict[str, str]]:
        sizes, todo, places = model.sizes, [concepts.baseline()], dict[str, concepts.Place]()
        for concept in sizes.called:
            sets = model.sets(concept)
            # The prompts on which every place is tried are left out, so that placement has not seen their clips.
            neutral = sets.development[sizes.development :][: min(sizes.development, _PLACED_ON)]
            blocks = sizes.settings().blocks(model.lens.config.n_layers)
            places[concept], directions = concepts.placed(
                model.lens, sets, model.out / "places", prompts=neutral, layers=blocks, screen_seconds=sizes.seconds
            )
            model.tell(places[concept].told)
            todo += concepts.conditions(sets, places[concept], directions)
        neutral = model.sets("tempo").test[: sizes.test]
        played = model.played("one-call", todo, neutral, sizes.call_seeds, TEST_SEED, concepts.MEASURES)
        assert played.folder is not None
        scored = selectivity.scores(model.lens, played, model.out / f"{played.folder.name}.parquet", model.instruments)
        numbers = of_calls(played.table, scored)
        for place in places.values():
            note = place.rejected or f"{place.name}, strength {place.strength:.2g}"
            numbers[f"called/{place.concept}"] = Estimate(place.alignment, unit="alignment", note=note)
        return numbers, {concept: place.name for concept, place in places.items()}

    return model.kept("one-call", _CALLED, make)


def of_calls(table: pd.DataFrame, scored: pd.DataFrame) -> Numbers:
    """The effect of steering and of words for each concept and pole; for an instrument, on its share of the clips."""
    numbers, failed = Numbers(), []
    clips = table.merge(scored, on=["condition", *KEYS], validate="one_to_one")
    before = clips[clips["condition"] == BASELINE].reset_index(drop=True)
    prompts = before["prompt"].to_numpy()
    found = {
        (str(way), str(concept), str(pole)): one.reset_index(drop=True)
        for (way, concept, pole), one in clips.groupby(["way", "concept", "pole"], sort=False)
    }
    poles: dict[str, list[str]] = {}
    for _, concept, pole in found:
        poles.setdefault(concept, [])
        poles[concept] += [pole] if pole not in poles[concept] else []
    for (way, concept, pole), one in found.items():
        if way == BASELINE:
            continue
        sign = 1.0 if pole == poles[concept][0] else -1.0
        name = "called" if way == "steering" else "called-words"
        key, asked = f"{concept}/{pole}", found["words", concept, pole]
        if concept in concepts.OWN:
            measure = concepts.OWN[concept]
            numbers[f"{name}/{key}"] = steered(one, before, measure)
            apart = changes(one, before, measure).minus(changes(asked, before, measure), sign)
        else:
            own, words, mine = ((part["instrument"] == concept).to_numpy(float) for part in (before, asked, one))
            numbers[f"{name}/{key}"] = mean(mine - own, prompts, "points")
            apart = mean(sign * (mine - words), prompts, "points")
        if way == "steering":
            numbers[f"called-over-words/{key}"] = apart
            failed.append(one["failed"].mean())
    numbers["called-failed"] = Estimate(float(np.mean(failed)) if failed else float("nan"), unit="share")
    return numbers


def placed(model: Model, names: Mapping[str, str]) -> Numbers:
    """The chosen places' share of the best place's span, and the depth of the best place's block."""

    def make() -> tuple[Numbers, None]:
        numbers, n_layers = Numbers(), model.lens.config.n_layers
        settings = model.sizes.settings()
        blocks = settings.blocks(n_layers)
        middle = min(blocks, key=lambda block: abs(block - n_layers // 2))
        for concept in names:
            if concept not in SCANNED:
                continue
            table = _tried(model, concept)
            measure, failed = OWN[concept], failure_of(concept)
            if table.loc[table["condition"] == BASELINE, measure].isna().all():
                numbers[f"placed/{concept}"] = Estimate(float("nan"), unit="share", note="no clip can be measured")
                continue
            truth = Truth.of(with_spoilt(table), measure, failed)
            numbers |= of_truth(truth, concept, names[concept], place_name("one-to-one", middle), n_layers)
        return numbers, None

    return model.kept("placement", _SCANNED, make, dict(names))[0]


def of_truth(truth: Truth, concept: str, placed_at: str, middle: str, n_layers: int) -> Numbers:
    """The numbers of one concept from a sweep of every place."""
    spans = chosen_strengths(truth.spans())["span"]
    ours = [name for name in (placed_at, middle) if name in spans.index]
    shares = dict(zip(ours, truth.shares(ours, HALVINGS), strict=True)) if spans.max() > 0 else {}
    numbers = {
        f"placed/{concept}": Estimate(shares.get(placed_at, float("nan")), unit="share", note=placed_at),
        f"middle/{concept}": Estimate(shares.get(middle, float("nan")), unit="share", note=middle),
    }

    def best(rows: Any) -> float:
        found = chosen_strengths(truth.spans(rows))["span"]
        return int(str(found.idxmax()).split()[-1]) / max(n_layers - 1, 1)

    if spans.max() > 0:
        again = np.array([best(rows) for rows in resampled(truth.prompts, _AGAIN)])
        # A block is a step on the scale of depth, so no block is known more exactly than a step.
        stderr = float(np.hypot(again.std(), 1 / max(n_layers - 1, 1) / np.sqrt(12)))
        low, high = np.quantile(again, (0.025, 0.975)) if len(again) else (float("nan"), float("nan"))
        depth = Estimate(best(slice(None)), float(low), float(high), stderr, "depth", note=str(spans.idxmax()))
        numbers[f"best-block/{concept}"] = depth
    return numbers


def _tried(model: Model, concept: str) -> pd.DataFrame:
    """The development clips of every place: those of the concept's study, or a sweep of its own."""
    if concept in MAIN:
        clips = studies.load_folder(model.out / "studies" / concept).clips
        return clips[clips["split"] == "development"].reset_index(drop=True)
    settings, sets = model.sizes.settings(), model.sets(concept)
    directions = Directions.load(model.out / "places" / f"{concept}.safetensors", lens=model.lens)
    todo = scan.conditions(directions.at(settings.blocks(len(directions))), settings.strengths, settings.branch)
    measures = (OWN[concept], "loudness")
    prompts = sets.development[: settings.development]
    return model.played(f"scan-{concept}", todo, prompts, settings.development_seeds, 0, measures).table


def by_the_paper(model: Model) -> Numbers:
    """The paper's protocol on a model whose text stands in the decoder's own sequence."""

    def make() -> tuple[Numbers, None]:
        numbers = Numbers()
        for concept in MAIN:
            study = studies.run(
                model.lens, model.sets(concept), model.out / "paper" / concept, others=(), overwrite=True,
                settings=model.sizes.paper(model.lens), tell=model.tell,
            )  # fmt: skip
            numbers |= of_paper(study, model.lens.config.n_layers)
        return numbers, None

    return model.kept("paper", _PAPER, make, list(PAPER_DOSES))[0]


def of_paper(study: studies.Study, n_layers: int) -> Numbers:
    """Medians, changes at every strength, source layer, and the strength at which quality falls, from one study."""
    numbers, concept = Numbers(), study.concept
    test = study.clips[study.clips["split"] == "test"]
    before = test[test["condition"] == BASELINE]
    for outcome in study.outcomes:
        unit = "BPM" if concept == "tempo" else "Hz"
        numbers[f"paper-median/{outcome.pole}"] = Estimate(outcome.median, unit=unit, failed=outcome.failed)
        lost = study.side_effects
        assert lost is not None
        mine, own = (lost[lost["kind"] == kind] for kind in ("steered", BASELINE))
        mine = mine[np.sign(mine["strength"]) == np.sign(outcome.strength)].sort_values("strength", key=np.abs)
        too_far = (mine["failed"] > MOST_FAILED) | (mine["drift"] > MOST_DRIFT * float(own["drift"].iloc[0]))
        fallen = mine.loc[too_far, "strength"].abs()
        tried = mine["strength"].abs()
        numbers[f"paper-falls/{outcome.pole}"] = Estimate(
            float(fallen.min()) if len(fallen) else float("nan"), unit="strength",
            note=f"tried from {tried.min():g} to {tried.max():g}",
        )  # fmt: skip
        for strength in mine["strength"]:
            here = test[(test["kind"] == "steered") & (test["strength"] == strength)]
            numbers[f"paper-dose/{outcome.pole}/{abs(strength):g}"] = steered(here, before, study.measure)
        numbers[f"paper/{outcome.pole}"] = numbers[f"paper-dose/{outcome.pole}/{abs(outcome.strength):g}"]
    depth = (study.choice.layer or 0) / max(n_layers - 1, 1)
    numbers[f"paper-source/{concept}"] = Estimate(depth, unit="depth", note=f"block {study.choice.layer} of {n_layers}")
    return numbers
