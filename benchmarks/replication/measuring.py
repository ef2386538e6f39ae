"""Measure one model: its studies of tempo and timbre, and the same places with other readings of the directions.

Every stage is kept in a file of the model's folder, and the clips in folders beside it, so that a stopped run resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import selectivity
import torch
from jaxtyping import Float
from selectivity import OTHER_SEEDS, READINGS, Place
from torch import Tensor
from torch.nn.functional import cosine_similarity

from analysis import study as studies
from analysis import sweep
from analysis.study.settings import TEST_SEED
from analysis.study.study_set import Several
from analysis.sweep import BASELINE
from analysis.sweep.response import KEYS
from audiolens import AudioLens
from audiolens.directions.samples import Samples
from audiolens.errors import InputError
from audiolens.etude import synth
from audiolens.etude.training.instruments import Instruments, mix_moved
from audiolens.etude.training.recipes import RECIPES
from audiolens.files.atomic import put
from audiolens.files.integrity import read_json, sealed_json
from audiolens.model.weight_hash import weights_hash
from audiolens.prompts import PromptSet, concepts, load
from audiolens.tracing.noise import NOISE
from replication.estimates import Estimate, changes, quotient, steered
from replication.sizes import MAIN, Sizes

FORMAT = "audiolens.claims.1"
OWN: Mapping[str, str] = selectivity.OWN
ENOUGH = 25
"""Prompts per pole that are enough for a direction, according to the paper."""
ORDERS = 50
Numbers = dict[str, Estimate]


@dataclass(frozen=True)
class Model:
    """A model to be measured, with the folder for its numbers and clips.

    The prompts are those of `vocabulary`, for every model: an étude's tokenizer may read free English, although the
    étude was never trained on it.
    """

    name: str
    lens: AudioLens
    out: Path
    sizes: Sizes
    vocabulary: str = "etude"
    n_jobs: int | None = None
    tell: Callable[[str], None] = print

    def sets(self, concept: str) -> PromptSet:
        return load(concept, self.vocabulary)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the numbers are of."""
        config = self.lens.config
        return {"format": FORMAT, "name": self.name, "weights": weights_hash(self.lens.model),
                "blocks": config.n_layers, "width": config.d_model, "prefix": config.has_prefix,
                "noise": NOISE}  # fmt: skip

    @property
    def instruments(self) -> Callable[[AudioLens], Instruments]:
        """Fits the classifier of instruments on the music that the model was trained on."""
        recipe = RECIPES.get(self.name)
        fits = recipe is not None and recipe.material.codebooks == self.lens.config.n_codebooks
        music = recipe.material.music if recipe is not None and fits else synth.BUNDLED
        return partial(Instruments.of, n=self.sizes.labelled, seconds=self.sizes.seconds, music=music)

    def kept(
        self, stage: str, uses: tuple[str, ...], make: Callable[[], tuple[Numbers, Any]], follows: Any = None
    ) -> tuple[Numbers, Any]:
        """The numbers of a stage and whatever else `make` returns, from the stage's file or computed now.

        Args:
            uses: the sizes on which the stage depends.
            follows: what else it depends on.

        Raises:
            InputError: if the folder has numbers of other weights.
        """
        path, facts = self.out / f"{stage}.json", {**self.facts, "sizes": self.sizes.only(uses), "follows": follows}
        if path.is_file():
            found = read_json(path)
            if found["facts"].get("weights") != facts["weights"]:
                raise InputError(
                    f"{path} has numbers of another model that was named {self.name!r}: give another name or folder."
                )
            if found["facts"] == facts:
                self.tell(f"{self.name}: {stage} kept from before")
                return {key: Estimate.of_dict(one) for key, one in found["numbers"].items()}, found["more"]
        self.tell(f"{self.name}: {stage}")
        numbers, more = make()
        told = {key: one.as_dict() for key, one in numbers.items()}
        put(path, sealed_json({"facts": facts, "numbers": told, "more": more}))
        return numbers, more

    def played(
        self,
        what: str,
        todo: list[sweep.Condition],
        prompts: Sequence[str],
        seeds: int,
        first_seed: int,
        measures: Sequence[str],
    ) -> sweep.SweepResult:
        """Clips of all conditions, in a folder whose name depends on what they are."""
        clips = sweep.clips(prompts, seeds, first_seed)
        key = json.dumps([NOISE, self.sizes.seconds, clips, measures, [(one.name, dict(one.labels)) for one in todo]])
        folder = self.out / f"{what}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        return sweep.play(
            self.lens, todo, clips, seconds=self.sizes.seconds, measures=measures, out=folder, n_jobs=self.n_jobs,
            progress=f"{self.name}: {what}",
        )  # fmt: skip


_STUDIED = ("seconds", "poles", "development", "development_seeds", "test", "test_seeds", "controls", "doses")


def studied(model: Model) -> tuple[Numbers, dict[str, Any]]:
    """Effects of both signs, words, controls, strategies and the number of prompts; and the places that were chosen."""

    def make() -> tuple[Numbers, dict[str, Any]]:
        alone = []
        for concept in MAIN:
            others = [model.sets(other) for other in concepts(model.vocabulary) if other != concept]
            alone.append(
                studies.run(
                    model.lens,
                    model.sets(concept),
                    model.out / "studies" / concept,
                    others=others,
                    overwrite=True,
                    settings=model.sizes.settings(n_jobs=model.n_jobs),
                    tell=model.tell,
                )  # fmt: skip
            )
        numbers, places = {}, {}
        # Both poles of both concepts are reported together, so their p-values are corrected together.
        for study in Several(tuple(alone)).studies:
            numbers |= of_study(study)
            choice = study.choice
            places[study.concept] = {"strategy": choice.strategy, "layer": choice.layer, "strength": choice.strength}
        return numbers, places

    return model.kept("studies", _STUDIED, make)


def of_study(study: studies.Study) -> Numbers:
    """The numbers of one study, by kind, concept and pole."""
    concept, measure, numbers = study.concept, study.measure, Numbers()
    test = study.clips[study.clips["split"] == "test"]
    before = test[test["condition"] == BASELINE]
    for outcome, sign in zip(study.outcomes, (1.0, -1.0), strict=True):
        key = f"{concept}/{outcome.pole}"
        here = test[(test["kind"] == "steered") & (test["strength"] == outcome.strength)]
        asked = test[(test["kind"] == "prompted") & (test["pole"] == outcome.pole)]
        numbers[f"effect/{key}"] = steered(here, before, measure)
        numbers[f"words/{key}"] = steered(asked, before, measure)
        apart = changes(here, before, measure).minus(changes(asked, before, measure), sign)
        numbers[f"over-words/{key}"] = apart
        rivals = f"; as large: {', '.join(outcome.rivals)}" if outcome.rivals else ""
        numbers[f"controls/{key}"] = Estimate(
            outcome.p_corrected, unit="p", note=f"{outcome.n_controls} controls{rivals}"
        )
        numbers[f"rivals/{key}"] = Estimate(float(len(outcome.rivals)), unit="concepts")
    numbers[f"place/{concept}"] = Estimate(
        study.choice.strength, unit="strength", note=f"{study.choice.strategy} {study.choice.layer}"
    )
    numbers |= strategies(study, test, before)
    assert study.directions.samples is not None
    at = study.directions.layers.index(int(study.choice.layer or 0))
    few, more = enough(study.directions.samples, at)
    numbers[f"prompts-{ENOUGH}/{concept}"] = Estimate(few, unit="cosine")
    numbers[f"prompts-more/{concept}"] = Estimate(more, unit="cosine")
    return numbers


def strategies(study: studies.Study, test: pd.DataFrame, before: pd.DataFrame) -> Numbers:
    """How much wider the span between the poles is one-to-all than one-to-one, each at its own best place."""
    spans = {}
    for kind, choice in (("steered", study.choice), *(("alternative", one) for one in study.alternatives)):
        up, down = (
            changes(test[(test["kind"] == kind) & (test["strategy"] == choice.strategy)
                         & (test["strength"] == sign * choice.strength)], before, study.measure)
            for sign in (1, -1)
        )  # fmt: skip
        spans[choice.strategy] = up.span(down)
    if not {"one-to-all", "one-to-one"} <= spans.keys():
        return {}
    return {f"strategies/{study.concept}": spans["one-to-all"].minus(spans["one-to-one"])}


def enough(samples: Samples, at: int, n: int = ENOUGH) -> tuple[float, float]:
    """The mean cosine of a direction from `n` prompts per pole, and of one from half of all prompts, with a direction
    from the other half. The second is NaN if half of the prompts are no more than `n`.

    Args:
        at: the index of the layer.
    """
    values = samples.values[at]
    high, low = (values[side] for side in (samples.labels, ~samples.labels))
    half = min(len(high), len(low)) // 2
    found = []
    for seed in range(ORDERS):
        order = torch.Generator().manual_seed(seed)
        rows = [torch.randperm(len(side), generator=order) for side in (high, low)]

        def read(first: int, count: int, rows: list[Tensor] = rows) -> Float[Tensor, " d_model"]:
            ends = [side[of[first : first + count]].mean(0) for side, of in zip((high, low), rows, strict=True)]
            return ends[0] - ends[1]

        other = read(half, half)
        found.append([float(cosine_similarity(read(0, count), other, dim=0)) for count in (min(n, half), half)])
    few, more = np.mean(found, axis=0)
    return float(few), float(more) if half > n else float("nan")


_READ = ("seconds", "poles", "test", "test_seeds", "labelled")
"""The sizes of the stage of readings, which also depends on the places that the studies chose."""


def read_otherwise(model: Model, places: Mapping[str, Any]) -> Numbers:
    """Effects on every measure for each reading of the directions and for words, at the places of the studies."""

    def make() -> tuple[Numbers, None]:
        sizes, todo, prompts = model.sizes, selectivity.baselines(), set[tuple[str, ...]]()
        folder = model.out / "readings"
        folder.mkdir(exist_ok=True)
        # The first reading is that of the studies, and the others get its norm.
        ways = [way for way in ("shared", *READINGS) if way != "eos" or model.lens.config.has_prefix]
        for concept in MAIN:
            sets = model.sets(concept)
            prompts.add(sets.test[: sizes.test])
            read = {way: selectivity.reading(model.lens, folder, sets, way, sizes.poles) for way in ways}
            todo += selectivity.conditions(sets, read, Place(**places[concept]))
        if len(prompts) > 1:
            raise InputError("the concepts have different neutral prompts, so they share no baseline.")
        played = model.played("readings", todo, prompts.pop(), sizes.test_seeds, TEST_SEED, selectivity.MEASURES)
        assert played.folder is not None
        scored = selectivity.scores(model.lens, played, model.out / f"{played.folder.name}.parquet", model.instruments)
        return of_readings(played.table, scored), None

    return model.kept("readings", _READ, make, places)[0]


def of_readings(table: pd.DataFrame, scored: pd.DataFrame) -> Numbers:
    """The numbers by way, concept, pole and measure. Drift is in multiples of that between two seeds of one prompt."""
    numbers = Numbers()
    clips = table.merge(scored, on=["condition", *KEYS], validate="one_to_one")
    parts = {str(name): one for name, one in clips.groupby("condition", sort=False)}
    before, again = (parts.pop(name).reset_index(drop=True) for name in (BASELINE, "other seeds"))
    seeds = np.abs(again["nats"].to_numpy() - before["nats"].to_numpy())
    for one in parts.values():
        row = one.iloc[0]
        key = f"{row['way']}/{row['concept']}/{row['pole']}"
        for measure in selectivity.MEASURES:
            numbers[f"{key}/{measure}"] = steered(one, before, measure)
        moved = np.abs(one["nats"].to_numpy() - before["nats"].to_numpy())
        numbers[f"{key}/drift"] = quotient(moved, seeds, before["prompt"].to_numpy())
        mix = mix_moved(list(before["instrument"]), list(one["instrument"]))
        numbers[f"{key}/instruments"] = Estimate(mix, unit="share")
    mix = mix_moved(list(before["instrument"]), list(again["instrument"]))
    numbers["seeds/instruments"] = Estimate(mix, unit="share", note=f"seeds + {OTHER_SEEDS:,}")
    # How far a direction of another reading steers towards both poles, compared with the mean over shared codes.
    for concept, measure in OWN.items():
        spans = {}
        for way in dict.fromkeys(clips["way"]):
            mine = [one for one in parts.values() if (one.iloc[0]["concept"], one.iloc[0]["way"]) == (concept, way)]
            if len(mine) == 2:
                up, down = (changes(one, before, measure) for one in mine)
                spans[way] = up.span(down)
        for way in spans.keys() - {"shared"}:
            numbers[f"span/{way}/{concept}"] = spans[way].minus(spans["shared"])
    return numbers
