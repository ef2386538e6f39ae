"""Compare methods of steering over concepts: at one place, at the same doses, on the same clips.

Every method steers test prompts that no direction was read from, next to prompts that name the pole, to random
directions and to balanced shuffles of the same norm. The clips of a concept are one sweep, so that a comparison resumes
where it stopped. A later call with more concepts or methods generates only what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from analysis import sweep
from analysis.methods import clap as heard_by_clap
from analysis.methods import frechet
from analysis.methods.playing import play
from analysis.methods.reading import NotApplicable, Place, Reading, Steering, read
from analysis.methods.result import MethodsResult
from analysis.methods.scores import LIMIT, Played, scored
from analysis.methods.table import OTHER_SEEDS, PROMPTING, REFERENCE, Method, checked_methods
from analysis.resampling import Resampling
from analysis.study.settings import TEST_SEED
from analysis.study.stages import STAGES, Stages, common_of
from analysis.sweep.concept_measures import MEASURED
from analysis.sweep.conditions import BASELINE, Condition, PromptSeed
from analysis.sweep.controls import drawn
from analysis.sweep.result import SweepResult
from audiolens import measure
from audiolens import prompts as prompt_sets
from audiolens.checks import (
    MOST_JOBS,
    MOST_SEED,
    checked_amount,
    checked_count,
    checked_flags,
    in_order,
    real_number,
    shown,
)
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.files.atomic import as_path, is_name
from audiolens.groups import takes
from audiolens.measure.clap import Clap, opened
from audiolens.measure.clap import Model as ClapModel
from audiolens.measure.table import known_measure
from audiolens.model.timeline import clip_timeline
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.engines import Engine, checked_engine
from audiolens.tracing.generation import Generation
from audiolens.tracing.sampling import Sampling, checked_settings

if TYPE_CHECKING:
    from audiolens import AudioLens

Measured = str | Callable[["AudioLens", Generation], ArrayLike]
"""The name of a measure, or a function of a lens and clips that returns one number per clip."""
DOSES = (-1.0, -0.5, 0.5, 1.0)
CROSS = (*MEASURED.values(), "loudness", "mode")
"""Measured in every clip, whatever the concepts, so that cross-effects are comparable."""
RESEED = 500_000
"""A multiple of it is added to the seeds of the clips that show how far clips differ without steering."""


@guarded
@named_once
@takes("sampling", Sampling)
@takes("resampling", Resampling, keeps=["n_permutations"])
def compare(
    lens: AudioLens,
    concepts: Sequence[str | PromptSet],
    *,
    methods: Sequence[str] | Mapping[str, Method] | None = None,
    measured: Mapping[str, Measured] | None = None,
    doses: Sequence[float] = DOSES,
    n_random: int = 1,
    n_shuffled: int = 1,
    prompts: int = 12,
    seeds: int = 1,
    read_prompts: int = 48,
    places: Mapping[str, Place] | None = None,
    clap: ClapModel | None = None,
    limit: float = LIMIT,
    seconds: float = 5.0,
    guidance_scale: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    batch_size: int = 64,
    out: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    engine: Engine = "auto",
    n_bootstrap: int = 1000,
    n_permutations: int = 9999,
    seed: int = 0,
    progress: bool = True,
    sampling: Sampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> MethodsResult:
    """Steer each concept by each method, and report effect and preservation on the same test prompts.

    Args:
        lens: the model.
        concepts: names of bundled prompt sets, or prompt sets, with neutral development and test prompts.
        methods: names from `METHODS` (default: all), or functions by name (see `Method`). The difference in means is
            always included, because all others are compared with it.
        measured: the measure of each concept, by concept: a name from `measure.MEASURES`, or a function of the lens and
            the generated clips that returns one number per clip. By default, it is the measure in which studies report
            effects on the concept, or the measure with the concept's name.
        doses: signed multiples of the strength that shifts the predictions as far as naming the pole does.
        n_random, n_shuffled: numbers of random directions and of balanced shuffles of the prompts, at all doses. With
            19 of a kind, a rank among them can reach a p-value of .05.
        prompts, seeds: number of test prompts of the first concept's set, with which all concepts are tested, and of
            clips per prompt. An exact paired test of n prompts cannot give a p-value below 2 ** (1 - n); with the
            correction for all methods and eight concepts, it takes at least 13.
        read_prompts: the largest number of prompts per pole from which directions are read, over shared clips.
        places: where to steer a concept, by concept (default: `placement.place`, without its screen).
        clap: a CLAP model (a hub name, a folder, or (ClapModel, ClapProcessor)), with which clips are compared with
            the unsteered ones of the same prompts and seeds (`measure.clap_distance`). For this, every call decodes all
            clips again.
        limit: the largest drift of the area (see `MethodsResult`).
        seconds, guidance_scale, temperature, top_k, batch_size, n_jobs, engine: as in `sweep.play`.
        out: a folder. If the comparison is interrupted, repeating the call resumes it. `None` writes nothing.
        n_bootstrap, n_permutations, seed: of the intervals and paired tests.
        progress: show progress bars.
        sampling, resampling: a `Sampling` and a `Resampling` instead of single settings.

    Raises:
        InputError: (or a subclass) before a model runs if a concept has no measure, no neutral prompts or too few, a
            test prompt is one that directions are read from, a method is unknown, or a number is out of range; later,
            if a concept cannot be placed, its measure does not vary, or the folder contains a sweep with other
            settings.
        ModelNotFoundError: before a model runs, if `clap` cannot be loaded.
    """
    checked_flags(progress=progress)
    prompts, read_prompts = checked_count("prompts", prompts, 2), checked_count("read_prompts", read_prompts, 2)
    seeds, seed = checked_count("seeds", seeds), checked_count("seed", seed, 0, MOST_SEED)
    n_random, n_shuffled = checked_count("n_random", n_random, 0), checked_count("n_shuffled", n_shuffled, 0)
    n_bootstrap = checked_count("n_bootstrap", n_bootstrap, 0)
    n_permutations = checked_count("n_permutations", n_permutations, 0)
    n_jobs = None if n_jobs is None else checked_count("n_jobs", n_jobs, 0, MOST_JOBS)
    batch_size, seconds = whole_batch_size(batch_size), checked_amount("seconds", seconds, above=0)
    guidance_scale, temperature, top_k = checked_settings(guidance_scale, temperature, top_k)
    clip_timeline(seconds, lens.config)
    checked_engine(engine)
    sets = _sets(lens, concepts)
    ways, ears = checked_methods(methods), _ears(sets, measured or {})
    steps, limit = _doses(doses), checked_amount("limit", limit, above=0)
    unknown = [name for name in places or {} if name not in sets]
    if unknown:
        raise InputError(f"places: {shown(unknown[0])} is not one of the concepts {', '.join(sets)}.")
    first = next(iter(sets.values()))
    if len(first.test) < prompts:
        raise InputError(f"{first.concept} has {len(first.test)} neutral test prompts, and prompts={prompts}.")
    _refuse_read(sets, first.test[:prompts])
    ear = None if clap is None else opened(clap)
    clips = sweep.clips(first.test[:prompts], seeds, TEST_SEED)
    folder = None if out is None else as_path(out)
    if folder is not None:
        if unfit := [name for name in sets if not is_name(name)]:
            raise InputError(
                f"concepts: {shown(unfit[0])} cannot be the name of a folder: rename it, or leave out out=."
            )
        (folder / STAGES).mkdir(parents=True, exist_ok=True)
    stages = Stages(folder, {} if folder is None else common_of(lens))
    playing: dict[str, Any] = {
        "seconds": seconds, "guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k,
        "batch_size": batch_size, "n_jobs": n_jobs, "engine": engine,
    }  # fmt: skip
    asked = _Asked(clips, ways, tuple(steps), n_random, n_shuffled, read_prompts, stages, playing, ear, progress)
    played = [
        _played(lens, one, ears[name], (places or {}).get(name), asked)
        for name, one in tqdm(sets.items(), desc="concepts", disable=not progress)
    ]
    return scored(
        played, model=lens.name, limit=limit, n_bootstrap=n_bootstrap, n_permutations=n_permutations, seed=seed
    )


@dataclass(frozen=True)
class _Asked:
    """What is done to every concept."""

    clips: Sequence[PromptSeed]
    ways: Mapping[str, Method]
    doses: tuple[float, ...]
    n_random: int
    n_shuffled: int
    n_read: int
    stages: Stages
    playing: Mapping[str, Any]
    clap: Clap | None
    progress: bool


def _played(lens: AudioLens, sets: PromptSet, ear: Measured, place: Place | None, asked: _Asked) -> Played:
    """Read a concept, fit every method, and generate and measure the clips."""
    name, folder = sets.concept, asked.stages.folder
    measured = ear if isinstance(ear, str) else None
    reading = read(
        lens, sets, n_read=asked.n_read, place=place, measured=measured, stages=asked.stages, progress=asked.progress
    )
    steered, left_out, seconds = _steered(lens, reading, asked)
    conditions = [
        Condition(BASELINE, labels=_labels(name, "", BASELINE)),
        Condition(OTHER_SEEDS, labels=_labels(name, OTHER_SEEDS, OTHER_SEEDS), reseed=_reseed(name)),
        *_prompted(sets),
        *steered,
        *_controls(reading, asked),
    ]
    own = measured or f"{name} score"
    measures = [*CROSS, *([own] if measured and own not in CROSS else [])]
    nats = partial(_nats, asked.playing["guidance_scale"], asked.playing["temperature"] or 1.0)
    swept = play(
        lens, conditions, asked.clips, None if folder is None else folder / "clips" / name, **asked.playing,
        measures=measures, also={"nats": nats, **({} if isinstance(ear, str) else {own: ear})},
        progress=name if asked.progress else None,
    )  # fmt: skip
    table = pd.concat([one.table for one in swept], ignore_index=True)
    return Played(
        concept=name, measured=own, measures=tuple(dict.fromkeys([*measures, own])), place=reading.place,
        left_out=left_out,
        # The reading is what the difference in means takes, and all other methods start from it.
        seconds={**seconds, REFERENCE: asked.stages.seconds.get(f"{name}-reading", float("nan"))},
        distances=_distances(lens, swept, asked.clap),
        table=table.drop_duplicates(["condition", "prompt", "seed"], ignore_index=True),
    )  # fmt: skip


def _distances(lens: AudioLens, swept: Sequence[SweepResult], clap: Clap | None) -> dict[str, dict[str, float]]:
    """How far each condition is from the baseline, by name of the distance and condition."""
    found: dict[str, dict[str, float]] = {}
    for one in swept:
        heard = {} if clap is None else heard_by_clap.distances(lens, one, clap)
        for name, by_condition in {"frechet": frechet.distances(lens, one), **heard}.items():
            found.setdefault(name, {}).update(by_condition)
    return found


def _sets(lens: AudioLens, concepts: Any) -> dict[str, PromptSet]:
    found: dict[str, PromptSet] = {}
    if isinstance(concepts, str | PromptSet):
        concepts = [concepts]
    for one in in_order("concepts", concepts, "names or prompt sets"):
        sets = prompt_sets.load(one, lens=lens) if isinstance(one, str) else one
        if not isinstance(sets, PromptSet):
            raise InputTypeError(f"concepts: {shown(one)}: expected the name of a prompt set, or a PromptSet.")
        if sets.concept in found:
            raise InputError(f"concepts: {shown(sets.concept)} was given twice.")
        found[sets.concept] = sets
    if not found:
        raise InputError("concepts is empty: give at least one.")
    return found


def _refuse_read(sets: Mapping[str, PromptSet], tested: Sequence[str]) -> None:
    """Raise an error if a direction would be read from, or over clips of, a prompt that it is tested with."""
    for name, one in sets.items():
        if both := [prompt for prompt in tested if prompt in {*one.positive, *one.negative, *one.development}]:
            raise InputError(
                f"the test prompt {shown(both[0])} is also one that {name} is read from: give concepts whose prompt "
                "sets share their neutral prompts, or compare them one by one."
            )


def _ears(sets: Mapping[str, PromptSet], measured: Mapping[str, Measured]) -> dict[str, Measured]:
    known = [*measure.MEASURES, *measure.EXTRA_MEASURES]
    if other := [name for name in measured if name not in sets]:
        raise InputError(f"measured: {shown(other[0])} is not one of the concepts {', '.join(sets)}.")
    found: dict[str, Measured] = {}
    for name in sets:
        ear = measured.get(name) or MEASURED.get(name) or (name if name in known else None)
        if ear is None:
            raise InputError(f"{name} has no measure of its own: give measured={{{name!r}: ...}}.")
        found[name] = ear if callable(ear) else known_measure("measured", ear, known)
    measure.refuse_lacking([ear for ear in found.values() if isinstance(ear, str)])
    return found


def _doses(doses: Any) -> list[float]:
    try:
        found = sorted({real_number(one) for one in in_order("doses", doses, "numbers")})
    except TypeError:
        raise InputTypeError(f"doses={shown(doses)}: expected a list of numbers.") from None
    if not np.isfinite(found).all() or 0.0 in found or not found or found[0] >= 0 or found[-1] <= 0:
        raise InputError(f"doses={shown(doses)}: expected finite numbers other than 0, of both signs.")
    return found


def _reseed(concept: str) -> int:
    """Each concept has its own other seeds, whichever concepts are compared with it."""
    return RESEED * (1 + crc32(concept.encode()) % 1000)


def _nats(guidance_scale: float, temperature: float, lens: AudioLens, clips: Generation) -> np.ndarray:
    """The nats per code of clips under the unsteered model, each under its own prompt."""
    found = measure.code_nats(
        lens, list(clips.prompts), clips.codes, guidance_scale=guidance_scale, temperature=temperature,
        batch_size=len(clips),
    )  # fmt: skip
    return found.mean(dim=(1, 2)).double().numpy()


def _labels(concept: str, method: str, kind: str, dose: float = 0.0) -> dict[str, Any]:
    return {"concept": concept, "method": method, "kind": kind, "dose": dose}


def _prompted(sets: PromptSet) -> list[Condition]:
    """Both poles in words, which count as doses of 1 and -1."""
    if not (sets.positive_words and sets.negative_words):
        return []
    found = []
    for dose, pole in zip((1.0, -1.0), sets.poles, strict=True):
        labels = _labels(sets.concept, PROMPTING, PROMPTING, dose)
        found.append(Condition(f"{PROMPTING} {dose:+g}", ask=partial(sets.prompted, pole=pole), labels=labels))
    return found


def _steered(
    lens: AudioLens, reading: Reading, asked: _Asked
) -> tuple[list[Condition], dict[str, str], dict[str, float]]:
    """The conditions of every method, why others were left out, and how long each took to compute."""
    found: list[Condition] = []
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    concept = reading.sets.concept
    for name, way in tqdm(asked.ways.items(), desc=f"{concept}: methods", leave=False, disable=not asked.progress):
        # Whatever a method keeps is its own, under any name.
        taken: dict[str, float] = {}
        try:
            steering = way(lens, replace(reading, _stages=replace(asked.stages, seconds=taken)))
        except NotApplicable as error:
            left_out[name] = str(error)
        else:
            found += _dosed(concept, name, "method", steering, asked.doses)
            seconds[name] = sum(taken.values()) if taken else float("nan")
    return found, left_out, seconds


def _controls(reading: Reading, asked: _Asked) -> list[Condition]:
    """Random directions and balanced shuffles, at the place and with the norm of the difference in means."""
    found = []
    for control in drawn(reading.directions, n_random=asked.n_random, n_shuffled=asked.n_shuffled):
        name, steering = f"{control.kind} {control.draw}", reading.along(control.directions)
        found += _dosed(reading.sets.concept, name, control.kind, steering, asked.doses)
    return found


def _dosed(concept: str, name: str, kind: str, steering: Steering, doses: Sequence[float]) -> Iterator[Condition]:
    for dose in doses:
        yield Condition(f"{name} {dose:+.12g}", tuple(steering(dose)), labels=_labels(concept, name, kind, dose))
