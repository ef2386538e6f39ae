"""The study: from a concept to what steering along its direction does, in one call.

Directions are read at every block, compared and looked at; evidence says where one is added, or else steering is tried
at every block on development prompts; the place and the best strength are reported on test prompts, beside random
directions and beside asking in words. What is finished stays in the folder, and the same call goes on with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.pca import PCAResult
from analysis.placement import Placement
from analysis.similarity import CosineMap
from analysis.statistics import FEWEST_CONTROLS, Monotonicity
from analysis.study import stages
from analysis.study.made import made_of
from analysis.study.outcome import Outcome
from analysis.study.scan import Choice
from analysis.study.settings import Settings
from analysis.study.stages import Stages
from analysis.study.where import Where
from analysis.sweep.response import MEASURED
from audiolens.checks import checked_flags, checked_text
from audiolens.directions import Directions
from audiolens.door import guarded
from audiolens.errors import InputError, nearest, shortened
from audiolens.files import aside
from audiolens.prompts import PromptSet, concepts, load
from audiolens.tokens import named_once

if TYPE_CHECKING:
    from audiolens import AudioLens

WORDS: Mapping[str, tuple[str, str]] = {
    "tempo": ("faster", "slower"),
    "timbre": ("brighter", "darker"),
    "density": ("busier", "sparser"),
    "register": ("higher", "lower"),
}


@guarded
@dataclass(frozen=True, eq=False)
class Study:
    """What a study found.

    Attributes:
        concept, poles, measure: what was steered, from the positive to the negative pole, and how it is heard.
        directions: one per block.
        cosines, components: how the directions of blocks, and the activations of the poles, lie to one another.
        scan: effect of every place and strength tried on development prompts; `stage` is "scan" for those at every
            block, "strength" for those at the place that the evidence named.
        choice, alternatives: what was chosen from it, and the best of each other strategy.
        response: effect of every condition on test prompts: steered, controls, references.
        outcomes: what the chosen steering did towards either pole.
        monotonicity: of the median measure over strengths.
        cross: effect on the other measures.
        clips: one row per clip generated, of both splits.
        sounds: a few paired clips: (condition, prompt, seed) -> samples.
        seconds: how long each stage took to make.
        where, placement: what was patched, and where the evidence puts the direction, if it was asked.
        lost: what steering cost: failed clips, drift, Fréchet distance (`analysis.study.lost.table`).

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
    where: Where | None = None
    placement: Placement | None = None
    lost: pd.DataFrame | None = None

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
        checked_flags(overwrite=overwrite)
        checked_text("command", command)
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
        strategy, _, place = self.choice.told.partition(", ")
        claimed = any(found.claimable for found in self.outcomes)
        verb = "moved" if not claimed and any(found.towards for found in self.outcomes) else "made"
        return (
            f"Steering {self.concept} {strategy} ({place}, strength ±{self.choice.strength:g}) {verb} "
            f"{self.settings.test} neutral prompts x {self.settings.test_seeds} seeds {sides}."
        )

    def __repr__(self) -> str:
        return f"Study({self.concept} on {self.model!r}: {self.finding})"


@guarded
def prompts_of(concept: str | PromptSet, lens: AudioLens | None = None, settings: Settings | None = None) -> PromptSet:
    """The prompts of a concept that can be studied, with a lens in the words that it reads (`prompts.load`).

    Raises:
        InputError: for an unknown concept, naming the nearest that can be studied, or one that no measure hears.
    """
    chosen = settings or Settings()
    sets = concept if isinstance(concept, PromptSet) else None
    if sets is None:
        if concept not in concepts():
            known = [name for name in concepts() if chosen.measured or name in MEASURED]
            raise InputError(
                f"unknown concept {concept!r}.{nearest(str(concept), known)} Known: {shortened(known)}; or a .csv, "
                ".json or .toml file of prompts."
            )
        sets = load(concept, lens=lens)  # pyright: ignore[reportArgumentType]
    chosen.measure_of(sets.concept)
    return sets


@guarded
@named_once
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
        concept: "tempo", "timbre", "density", "register", or a prompt set (of another name with `settings.measured`).
        out: folder to write (`None` writes nothing; `study.save` still can). Finished stages stay in it: the same call
            goes on where it was stopped, at any moment, and ends with the same tables. Other settings make only what
            follows from them anew; a finished study of other settings is replaced only with `overwrite`.
        settings: how much of everything (default: `Settings()`, which hurries; `Settings.full()` is the evidence).
        overwrite: let this study take the place of one of other settings, concept, model or version. Any other folder
            is refused. Stages that this study follows from are kept; to make all anew, remove the folder.
        progress: show bars.
        tell: is told the plan and the stages, a line at a time.
        command: what reproduces this study; stands in its page.

    Raises:
        InputError: before the model runs: for an unknown concept, a folder that holds something else or cannot be
            written, or settings out of range.
        BusyError: if another process is at work in the folder.
        StoppedError: for a disk that is full or a process that died; what is finished is kept.
    """
    checked_flags(overwrite=overwrite, progress=progress)
    checked_text("command", command)
    chosen = settings or Settings()
    sets = prompts_of(concept, lens, chosen)
    chosen.check(lens, sets)
    if out is not None and not overwrite:
        stages.refuse_other_settings(Path(out), asdict(chosen))
    if out is None:
        return _run(lens, sets, chosen, Stages(), progress, tell)
    common = stages.common_of(lens)
    facts = {"concept": sets.concept, "model": lens.name, "weights": common["weights"], "versions": common["versions"]}
    with stages.begun(out, facts, common, overwrite=overwrite) as kept:
        study = _run(lens, sets, chosen, kept, progress, tell)
        started = time.perf_counter()
        write(study, Path(out), command, kept.used, kept.check)
        tell(f"figures and page: {time.perf_counter() - started:.0f} s")
    return study


def write(study: Study, folder: Path, command: str, used: Iterable[str], check: Callable[[], None]) -> None:
    """Put tables, figures, sound and page into a folder that holds the stages `used`, if `check` finds them there."""
    from analysis import report

    check()
    with aside(folder) as work:
        report.write(study, work, command=command)
        check()
        (work / stages.MADE).write_bytes(made_of(folder, work, used))
        stages.show(work, folder)


def _run(
    lens: AudioLens,
    sets: PromptSet,
    settings: Settings,
    kept: Stages,
    progress: bool,
    tell: Callable[[str], None],
) -> Study:
    from analysis.study import course

    return course.follow(lens, sets, settings, kept, progress, tell)


def _side(found: Outcome, word: str) -> str:
    """One pole's half of the finding."""
    if not np.isfinite(found.effect):
        return f"not measurably {word} (no clip could be measured)"
    interval = f"[{found.low:+.0%}, {found.high:+.0%}]"
    if not found.towards:
        text = f"not reliably {word} ({found.effect:+.0%} {interval}, {found.failed:.0%} of clips failed)"
    else:
        ranked = f"p = {found.p_random:.2g} among {found.n_random} random directions"
        if found.n_shuffled:
            ranked += f" and {found.p_shuffled:.2g} among {found.n_shuffled} of shuffled labels"
        if found.n_random < FEWEST_CONTROLS:
            ranked = "not yet told from random directions (quick controls)"
        elif not found.claimable:
            ranked = f"no better than random directions: {ranked}"
        text = f"{abs(found.effect):.0%} {word} ({interval}, {ranked}; asked for in words {found.prompted:+.0%})"
    return text.replace("-", "−")
