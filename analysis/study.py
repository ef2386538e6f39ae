"""The study: from a concept to what steering along its direction does, in one call.

Directions are read at every block, compared and looked at; steering is tried at every block on development prompts;
the best place and strength are reported on test prompts, beside random directions and beside asking in words.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import outcome, pca, scan, similarity, sweep
from analysis.listening import Listener
from analysis.outcome import Outcome
from analysis.pca import PCAResult
from analysis.scan import Choice
from analysis.settings import Settings
from analysis.similarity import CosineMap
from analysis.statistics import FEWEST_CONTROLS, Monotonicity
from analysis.sweep.response import MEASURED
from audiolens.directions import Directions, difference_in_means
from audiolens.errors import InputError, nearest, shortened
from audiolens.measure import MEASURES
from audiolens.prompts import PromptSet, concepts, load

if TYPE_CHECKING:
    from audiolens import AudioLens

WORDS: Mapping[str, tuple[str, str]] = {
    "tempo": ("faster", "slower"),
    "timbre": ("brighter", "darker"),
    "density": ("busier", "sparser"),
    "register": ("higher", "lower"),
}


@dataclass(frozen=True, eq=False)
class Study:
    """What a study found.

    Attributes:
        concept, poles, measure: what was steered, from the positive to the negative pole, and how it is heard.
        directions: one per block.
        cosines, components: how the directions of blocks, and the activations of the poles, lie to one another.
        scan: effect of every place and strength on development prompts.
        choice, alternatives: what was chosen from it, and the best of each other strategy.
        response: effect of every condition on test prompts: steered, controls, references.
        outcomes: what the chosen steering did towards either pole.
        monotonicity: of the median measure over strengths.
        cross: effect on the other measures.
        clips: one row per clip generated, of both splits.
        sounds: a few paired clips: (condition, prompt, seed) -> samples.

    What it does not show: that the direction *is* the concept (it is what separates these prompts, and moves this
    measure); that the chosen block is where the concept is computed (steering works wherever later blocks read);
    or that other music, prompts, lengths or models would do the same. The choice was the best of many on development
    prompts, so only the test numbers count. Without a claim in `finding`, nothing was shown.
    """

    concept: str
    poles: tuple[str, str]
    measure: str
    directions: Directions
    cosines: CosineMap
    components: PCAResult
    scan: pd.DataFrame
    choice: Choice
    alternatives: tuple[Choice, ...]
    response: pd.DataFrame
    outcomes: tuple[Outcome, Outcome]
    monotonicity: Monotonicity
    cross: pd.DataFrame
    clips: pd.DataFrame
    sounds: Mapping[tuple[str, str, int], np.ndarray]
    settings: Settings
    model: str
    sample_rate: int
    seconds: Mapping[str, float]

    def to_frame(self) -> pd.DataFrame:
        """The dose-response table: one row per condition on test prompts."""
        return self.response

    def plot(self) -> Any:
        """The dose-response (matplotlib figure)."""
        from analysis.figures import plots

        return plots.dose_response(self.response, self.measure, self.poles)

    def figure(self) -> Any:
        """The dose-response (plotly figure)."""
        from analysis.figures import screen

        return screen.dose_response(self.response, self.measure, self.poles)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False, command: str = "") -> Path:
        """Write tables, figures, sound, directions and the page; see `analysis.report`."""
        from analysis import folder as folders
        from analysis import report

        with folders.fresh(folder, overwrite=overwrite) as work:
            report.write(self, work, command=command)
        return Path(folder)

    @property
    def finding(self) -> str:
        """What was found, in a sentence."""
        words = WORDS.get(self.concept, (f"more {self.poles[0]}", f"more {self.poles[1]}"))
        sides = " and ".join(_side(found, word) for found, word in zip(self.outcomes, words, strict=True))
        place = "added at" if self.choice.strategy == "one-to-one" else "read at"
        claimed = any(found.claimable for found in self.outcomes)
        verb = "moved" if not claimed and any(found.towards for found in self.outcomes) else "made"
        return (
            f"Steering {self.concept} {self.choice.strategy} ({place} block {self.choice.layer}, strength "
            f"±{self.choice.strength:g}) {verb} {self.settings.test} neutral prompts x {self.settings.test_seeds} "
            f"seeds {sides}."
        )

    def __repr__(self) -> str:
        return f"Study({self.concept} on {self.model!r}: {self.finding})"


def prompts_of(concept: str | PromptSet, lens: AudioLens | None = None) -> PromptSet:
    """The prompts of a concept that can be studied, with a lens in the words that it reads (`prompts.load`).

    Raises:
        InputError: for an unknown concept, naming the nearest, or one that no measure hears.
    """
    sets = concept if isinstance(concept, PromptSet) else None
    if sets is None:
        known = concepts()
        if concept not in known:
            raise InputError(f"unknown concept {concept!r}.{nearest(str(concept), known)} Known: {shortened(known)}.")
        sets = load(concept, lens=lens)  # pyright: ignore[reportArgumentType]
    if sets.concept not in MEASURED:
        raise InputError(
            f"no measure hears {sets.concept!r}, so a study of it could not say what it did. "
            f"Concepts with one: {', '.join(MEASURED)}."
        )
    return sets


def run(
    lens: AudioLens,
    concept: str | PromptSet,
    out: str | os.PathLike[str] | None = None,
    *,
    settings: Settings | None = None,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> Study:
    """Study a concept on a model, and write the results to a folder.

    Args:
        lens: the model.
        concept: "tempo", "timbre", "density", "register", or a prompt set of one of these names.
        out: folder to write (`None` writes nothing; `study.save` still can). It appears whole or not at all.
        settings: how much of everything (default: `Settings()`, which hurries; `Settings.full()` is the evidence).
        overwrite: replace a study that is there. Any other folder is refused.
        progress: show bars.
        tell: is told the plan and the stages, a line at a time.
        command: what reproduces this study; stands in its page.

    Raises:
        InputError: before the model runs: for an unknown concept, a folder that exists or cannot be written, or
            settings out of range.
    """
    from analysis import folder as folders
    from analysis import report

    sets = prompts_of(concept, lens)
    chosen = settings or Settings()
    chosen.check(lens, sets)
    if out is None:
        return _run(lens, sets, chosen, progress, tell)
    with folders.fresh(out, overwrite=overwrite) as work:
        study = _run(lens, sets, chosen, progress, tell)
        started = time.perf_counter()
        report.write(study, work, command=command)
        tell(f"figures and page: {time.perf_counter() - started:.0f} s")
    return study


def _run(lens: AudioLens, sets: PromptSet, settings: Settings, progress: bool, tell: Callable[[str], None]) -> Study:
    _tell_plan(lens, sets, settings, tell)
    with Listener(lens, tuple(MEASURES), settings.n_jobs) as listener:
        return _stages(lens, sets, settings, listener, progress, tell)


def _stages(
    lens: AudioLens,
    sets: PromptSet,
    settings: Settings,
    listener: Listener,
    progress: bool,
    tell: Callable[[str], None],
) -> Study:
    clock = _Clock()
    measured = MEASURED[sets.concept]
    with clock.stage("directions"):
        directions = difference_in_means(
            lens,
            sets.positive[: settings.poles],
            sets.negative[: settings.poles],
            position=settings.position,
            branch="cond",
            guidance_scale=settings.guidance_scale,
            seconds=settings.reading_seconds,
            batch_size=settings.batch_size,
            seeds=settings.reading_seeds(sets),
            label=sets.concept,
            keep_samples=True,
            progress=progress,
        )
    with clock.stage("maps"):
        cosines = similarity.cosine_map(directions)
        components = _components(directions, sets)
    making = {"seconds": settings.seconds, **settings.sampling, "batch_size": settings.batch_size,
              "listener": listener}  # fmt: skip
    with clock.stage("scan"):
        tried = sweep.play(
            lens,
            scan.conditions(directions.at(settings.blocks(len(directions))), settings.strengths, settings.branch),
            settings.development_clips(sets),
            progress="scanning blocks" if progress else None,
            **making,
        )
        scanned = tried.effects(measured, n_bootstrap=0)
        choice = scan.choose(scanned)
        alternatives = tuple(scan.choose(scanned, other) for other in settings.strengths if other != choice.strategy)
    tell(f"chosen on development prompts: {choice!r}")
    pairs = settings.test_clips(sets)
    # The first seed of the first prompts: kept before anything is known of them.
    shown = pairs[:: settings.test_seeds][: settings.shown]
    with clock.stage("dose-response"):
        tested = sweep.play(
            lens,
            outcome.conditions(
                directions,
                sets,
                choice,
                alternatives,
                n_random=settings.n_random,
                n_shuffled=settings.n_shuffled,
                branch=settings.branch,
                first_draw=settings.first_draw,
            ),
            pairs,
            keep_audio=lambda condition, clip: (
                clip in shown and condition.labels["kind"] in (sweep.BASELINE, "steered", "prompted")
            ),
            progress="dose-response" if progress else None,
            **making,
        )
    with clock.stage("statistics"):
        response = tested.effects(measured)
        found = outcome.outcomes(response, sets, choice)
        cross = outcome.cross_effects(tested.table)
    keys = tested.table[["condition", "prompt", "seed"]].itertuples(index=False, name=None)
    sounds = {key: tested.audio[row] for row, key in enumerate(keys) if row in tested.audio}
    return Study(
        concept=sets.concept,
        poles=sets.poles,
        measure=measured,
        directions=directions,
        cosines=cosines,
        components=components,
        scan=scanned,
        choice=choice,
        alternatives=alternatives,
        response=response,
        outcomes=found,
        monotonicity=outcome.monotonicity(response),
        cross=cross,
        clips=pd.concat([tried.table, tested.table], ignore_index=True),
        sounds=sounds,
        settings=settings,
        model=lens.name,
        sample_rate=tested.sample_rate,
        seconds=clock.seconds,
    )


def _tell_plan(lens: AudioLens, sets: PromptSet, settings: Settings, tell: Callable[[str], None]) -> None:
    counts = settings.clips(lens.config.n_layers)
    speed = sweep.clips_per_second(lens, sets.development[0], settings.seconds, settings.batch_size)
    read = counts["reading directions"] * settings.reading_seconds / settings.seconds
    expected = (sum(counts.values()) - counts["reading directions"] + read) / speed
    parts = ", ".join(f"{count} for {stage}" for stage, count in counts.items())
    tell(f"{sum(counts.values())} clips of {settings.seconds:g} s: {parts}")
    tell(f"about {speed:.0f} clips a second here: {_minutes(expected)}, and about half a minute of figures")
    if settings.n_random < FEWEST_CONTROLS:
        tell(
            f"quick controls: {settings.n_random} random directions cannot reach p = .05, and "
            f"{settings.n_shuffled} of shuffled labels; the full study has 19 of either"
        )
    for sentence in settings.substitutes:
        tell(f"not as in the paper. {sentence}")


def _components(directions: Directions, sets: PromptSet) -> PCAResult:
    samples = directions.samples
    assert samples is not None
    labels = [sets.poles[0] if positive else sets.poles[1] for positive in samples.labels.tolist()]
    return pca.fit(samples.values.numpy(), labels, layers=directions.layers)


def _side(found: Outcome, word: str) -> str:
    """One pole's half of the finding."""
    if not np.isfinite(found.effect):
        return f"not measurably {word} (no clip could be measured)"
    interval = f"[{found.low:+.0%}, {found.high:+.0%}]"
    if not found.towards:
        text = f"not reliably {word} ({found.effect:+.0%} {interval}, {found.failed:.0%} of clips failed)"
    else:
        ranked = f"p = {found.p_random:.2g} among {found.n_random} random directions"
        if found.n_random < FEWEST_CONTROLS:
            ranked = "not yet told from random directions (quick controls)"
        elif not found.claimable:
            ranked = f"no better than random directions: {ranked}"
        text = f"{abs(found.effect):.0%} {word} ({interval}, {ranked}; asked for in words {found.prompted:+.0%})"
    return text.replace("-", "−")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"


class _Clock:
    """How long each stage took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
