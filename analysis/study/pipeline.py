"""Run the stages of a study in order and store each one when it finishes (`analysis.study.stages`).

The order is directions, patching, placement, then steering. `study.run` calls this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import placement, sweep
from analysis.distributed.backend import Backend
from analysis.distributed.opening import backend_of
from analysis.distributed.settings import Ray
from analysis.placement import Placement
from analysis.placement.shifts import words_of
from analysis.statistics import FEWEST_CONTROLS, LEVEL
from analysis.store.resumable import OtherResultsError
from analysis.study import others, placement_storage, scan, side_effects, storage, test_result, where
from analysis.study.assembly import StudyParts, assembled, chosen, places
from analysis.study.result import Study
from analysis.study.scan import Choice
from analysis.study.settings import Settings
from analysis.study.stages import Stages
from analysis.study.where import Where
from analysis.sweep import BASELINE, Condition, PromptSeed, SweepResult
from analysis.sweep.batches import TABLE
from analysis.sweep.planned import condition_hashes
from analysis.sweep.rows import OnRows, of_stage
from analysis.sweep.storage import is_among
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.prompts import PromptSet

if TYPE_CHECKING:
    from audiolens import AudioLens

SHOWN = (BASELINE, "steered", "prompted")
"""The kinds of conditions whose clips can be played on the page."""
N_POLES = 2
"""Number of tests in a study, for which the p-values are corrected."""
FIGURES_SECONDS = 25.0
"""Approximate time in seconds to draw and write the page."""


def follow(
    lens: AudioLens,
    sets: PromptSet,
    settings: Settings,
    stages: Stages,
    progress: bool,
    tell: Callable[[str], None],
    others: Sequence[PromptSet] = (),
    ray: Ray | None = None,
    on_rows: OnRows | None = None,
) -> Study:
    """Run every stage of a study, or read it if it is already stored, and return the study.

    `on_rows` is called with the rows of every batch of the sweeps (`rows.of_stage`).
    """
    with ExitStack() as until_the_end:
        teller = Teller(lens, sets, settings, tell, others, timed=ray is None)
        return _Course(lens, sets, settings, stages, progress, teller, until_the_end, others, ray, on_rows).study()


@dataclass(frozen=True)
class _Course:
    lens: AudioLens
    sets: PromptSet
    settings: Settings
    stages: Stages
    progress: bool
    teller: Teller
    until_the_end: ExitStack
    others: Sequence[PromptSet] = ()
    ray: Ray | None = None
    on_rows: OnRows | None = None

    def study(self) -> Study:
        settings, sets = self.settings, self.sets
        measured = settings.measure_of(sets.concept)
        directions = self._directions()
        found = self._where()
        placed = self._placed(directions)
        tried = self._tried(directions, placed)
        choice, alternatives, _ = chosen(tried, placed, settings, measured)
        self.teller.tell(f"chosen on development prompts: {choice!r}")
        tested = self._tested(directions, choice, alternatives)
        controlled = self._controlled(directions, choice)
        scored = self._scored(tested)
        parts = StudyParts(directions, found, placed, tried, tested, scored, controlled)
        return assembled(parts, sets.concept, sets.poles, settings, self.lens.name, self.stages.seconds)

    @cached_property
    def _reading(self) -> dict[str, Any]:
        """The arguments with which directions are read, which are the same for the other concepts."""
        settings, sets = self.settings, self.sets
        return {
            "position": settings.position, "branch": "cond", "guidance_scale": settings.guidance_scale,
            "seconds": settings.reading_seconds, "batch_size": settings.batch_size,
            "seeds": [*settings.reading_seeds(sets)], "label": sets.concept, "codes": settings.codes,
            "neutral": list(sets.development) if settings.codes == "shared" else None,
        }  # fmt: skip

    def _directions(self) -> Directions:
        settings, sets, asked = self.settings, self.sets, self._reading
        high, low = (list(side[: settings.poles]) for side in (sets.positive, sets.negative))
        stage = self.stages.stage(
            "directions",
            {**asked, "poles": [high, low]},
            difference_in_means,
            storage.write_directions,
            storage.read_directions,
        )
        self.teller.begin("directions", stage.there)
        return stage.kept(self.lens, high, low, **asked, keep_samples=True, progress=self.progress)

    def _others(self) -> dict[str, Directions]:
        """Read the directions of the other concepts."""
        if not self.others:
            return {}
        most = self.settings.other_poles
        poles = {one.concept: [one.positive[:most], one.negative[:most]] for one in self.others}
        follows = {**self._reading, "poles": poles}
        stage = self.stages.stage("others", follows, others.read, others.write, others.read_back)
        self.teller.begin("directions of other concepts", stage.there)
        return stage.kept(self.lens, self.others, most, {**self._reading, "progress": self.progress})

    def _where(self) -> Where | None:
        """Patch a few matched pairs. Returns `None` if the prompts of the poles are not matched."""
        settings, sets = self.settings, self.sets
        if not settings.pairs or not sets.matched:
            return None
        asked = {
            "n": settings.pairs, "guidance_scale": settings.guidance_scale, "first_seed": settings.first_pair,
            "seconds": min(1.0, settings.seconds), "batch_size": settings.batch_size,
        }  # fmt: skip
        follows = {**asked, "poles": [sets.positive, sets.negative]}
        stage = self.stages.stage("patching", follows, where.find, where.write, where.read)
        self.teller.begin("patching", stage.there)
        return stage.kept(self.lens, sets, asked)

    def _placed(self, directions: Directions) -> Placement | None:
        """Find the place that the evidence selects, before anything is steered."""
        settings = self.settings
        if settings.place_by != "evidence":
            return None
        asked: dict[str, Any] = {
            "layers": settings.blocks(len(directions)), "prompts": list(self.sets.development[: settings.development]),
            "seconds": settings.reading_seconds, "seed": settings.first_pair,
            # A study chooses the strength itself, from clips of its own measure.
            "screen_seconds": 0,
        }  # fmt: skip
        words = words_of(self.sets, asked["prompts"])
        follows = {**asked, "directions": storage.hash_of(directions), "words": words,
                   "poles": [self.sets.positive, self.sets.negative]}  # fmt: skip
        read = partial(placement_storage.read_placement, directions=directions)
        stage = self.stages.stage("placement", follows, placement.place, placement_storage.write_placement, read)
        self.teller.begin("placement", stage.there)
        found = stage.kept(self.lens, self.sets, directions, **asked, progress=False)
        self.teller.tell(found.reason)
        return found

    def _tried(self, directions: Directions, placed: Placement | None) -> dict[str, SweepResult]:
        """Run the sweeps from which place and strength are chosen, and return them by stage."""
        settings, tried = self.settings, {}

        def try_(name: str, label: str, todo: list[Condition]) -> None:
            tried[name] = self._swept(name, label, todo, settings.development_clips(self.sets))

        if settings.scans:
            at = directions.at(settings.blocks(len(directions)))
            try_("scan", "scanning blocks", scan.conditions(at, settings.strengths, settings.branch))
        if placed is not None:
            todo = scan.at(directions, places(placed, settings), settings.strengths_at_place, settings.branch)
            try_("strength", "choosing a strength", todo)
        return tried

    def _tested(self, directions: Directions, choice: Choice, alternatives: tuple[Choice, ...]) -> SweepResult:
        settings = self.settings
        pairs = settings.test_clips(self.sets)
        # Sound is kept for the first seed of the first prompts. This is fixed before anything is measured.
        shown = pairs[:: settings.test_seeds][: settings.shown]
        todo = test_result.conditions(
            directions,
            self.sets,
            choice,
            alternatives,
            branch=settings.branch,
            doses=settings.doses,
        )
        return self._swept("dose-response", "dose-response", todo, pairs, shown)

    def _controlled(self, directions: Directions, choice: Choice) -> SweepResult:
        """Steer along the controls at the chosen place and strength."""
        settings = self.settings
        todo = test_result.control_conditions(
            directions,
            choice,
            self._others(),
            n_random=settings.n_random,
            n_shuffled=settings.n_shuffled,
            branch=settings.branch,
            first_draw=settings.first_draw,
        )
        return self._swept("controls", "controls", todo, settings.control_clips(self.sets))

    def _scored(self, tested: SweepResult) -> pd.DataFrame:
        settings = self.settings
        # The key of the test sweep already covers everything on which these numbers depend.
        follows = {"tested": None if tested.folder is None else tested.folder.name, "frechet": settings.frechet}
        stage = self.stages.stage("lost", follows, side_effects.score, side_effects.write, side_effects.read)
        self.teller.begin("side effects", stage.there)
        return stage.kept(self.lens, tested, settings)

    def _swept(
        self,
        name: str,
        label: str,
        conditions: list[Condition],
        clips: list[PromptSeed],
        shown: list[PromptSeed] | None = None,
    ) -> SweepResult:
        """Run or resume a sweep in its own folder. The clips in `shown` are kept as sound."""
        settings = self.settings
        making = {"seconds": settings.seconds, **settings.drawing, "batch_size": settings.batch_size}
        follows = {
            **making,
            "conditions": condition_hashes(self.lens, conditions, settings.seconds),
            "clips": clips,
            "asked": {one.name: [one.asked(prompt) for prompt, _ in clips] for one in conditions if one.ask},
            "measures": list(self._measures),
            "shown": shown and [shown, SHOWN],
        }
        stage = self.stages.stage(name, follows, sweep.play)
        whole = stage.place is not None and (stage.place / TABLE).is_file()
        started = time.perf_counter()
        play = partial(
            stage.made,
            self.lens,
            conditions,
            clips,
            **making,
            n_jobs=0,
            # A sweep that has begun keeps its engine.
            engine="auto" if stage.there else settings.engine,
            measures=self._measures,
            listener=None if whole else self._listener,
            keep_audio=None if shown is None else partial(is_among, shown, SHOWN),
            out=stage.place,
            sound="flac" if stage.place is not None and shown is not None else None,
            progress=label if self.progress and not whole else None,
            on_rows=None if self.on_rows is None else partial(of_stage, self.on_rows, name),
        )
        with self.teller.swept(label, len(conditions) * len(clips), kept=whole, begun=stage.there):
            try:
                result = play()
            except OtherResultsError as error:
                # The folder contains a different sweep, or too little of this one to resume it.
                stage.discard(error)
                result = play()
        stage.took(0.0 if whole else time.perf_counter() - started)
        return result

    @cached_property
    def _measures(self) -> tuple[str, ...]:
        return self.settings.measures_of(self.sets.concept)

    @cached_property
    def _listener(self) -> Backend:
        """The workers that generate and measure clips. They start with the first sweep."""
        backend = backend_of(self.lens, self._measures, self.settings.n_jobs, self.ray)
        if backend.about:
            self.teller.tell(backend.about)
        return self.until_the_end.enter_context(backend)


@dataclass
class Teller:
    """Report progress in one line per stage, with an estimate of the time left."""

    lens: AudioLens
    sets: PromptSet
    settings: Settings
    line: Callable[[str], None]
    others: Sequence[PromptSet] = ()
    timed: bool = True

    def __post_init__(self) -> None:
        settings = self.settings
        self.counts = settings.clips(self.lens.config.n_layers, self.sets, self.others)
        parts = ", ".join(f"{count} for {stage}" for stage, count in self.counts.items())
        self.tell(f"{sum(self.counts.values())} clips of {settings.seconds:g} s: {parts}")
        controls = settings.n_random + settings.n_shuffled + len(self.others)
        if min(settings.n_random, settings.n_shuffled) < FEWEST_CONTROLS or N_POLES / (controls + 1) > LEVEL:
            self.tell(
                f"quick controls: {settings.n_random} random directions, {settings.n_shuffled} balanced shuffles and "
                f"{len(self.others)} other concepts cannot show an effect at p = {LEVEL:g} for both poles; the default "
                "is 19, 19 and the other bundled concepts"
            )
        for sentence in settings.substitutes:
            self.tell(f"differs from the paper. {sentence}")
        # `pace` is the time in seconds per clip on this machine, once measured. `counts` is the number of clips left to
        # generate.
        self.pace = float("nan")
        self.counts["reading directions"] *= settings.reading_seconds / settings.seconds  # pyright: ignore[reportArgumentType]

    def tell(self, line: str) -> None:
        self.line(line)

    def begin(self, label: str, kept: bool) -> None:
        """Announce a stage that is not a sweep."""
        # This count includes the clips for other concepts' directions, which are read later.
        count = self.counts.pop("reading directions", 0.0) if label == "directions" else 0.0
        if kept:
            self.tell(f"{label}: kept from before")
            return
        if count and np.isnan(self.pace):
            self._time()
        self.tell(f"{label}{self._left(count)}")

    @contextmanager
    def swept(self, label: str, clips: int, kept: bool, begun: bool) -> Iterator[None]:
        """Announce a sweep. Its speed updates the time estimates, unless the sweep was resumed."""
        self.counts.pop(label, None)
        if kept:
            self.tell(f"{label}: kept from before")
            yield
            return
        if np.isnan(self.pace):
            self._time()
        self.tell(f"{label}: {clips} clips{', less those already kept' if begun else ''}{self._left(clips)}")
        started = time.perf_counter()
        yield
        if not begun:
            self.pace = (time.perf_counter() - started) / clips

    def _time(self) -> None:
        if not self.timed:
            # This machine alone does not show the speed of a cluster.
            return
        settings = self.settings
        speed = sweep.clips_per_second(
            self.lens,
            self.sets.development[0],
            settings.seconds,
            settings.batch_size,
            settings.n_jobs,
            settings.engine,
        )
        self.pace = 1 / speed

    def _left(self, count: float) -> str:
        if np.isnan(self.pace):
            return ""
        here, after = count * self.pace, sum(self.counts.values()) * self.pace + FIGURES_SECONDS
        now = f", about {_spoken(here)}" if here else ""
        return f"{now}; about {_spoken(here + after)} left in total"


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"
