"""Study: everything that a study found, with its finding in a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.canvas import drawable
from analysis.pca import PCAResult
from analysis.placement import Placement
from analysis.similarity import CosineMap
from analysis.statistics import FEWEST_CONTROLS, Monotonicity
from analysis.study.scan import Choice
from analysis.study.settings import Settings
from analysis.study.test_result import Outcome
from analysis.study.where import Where
from audiolens.checks import checked_flags, checked_text
from audiolens.directions.directions import Directions
from audiolens.door import guarded

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
        lost: what steering cost: failed clips, drift, Fréchet distance (`analysis.study.side_effects.table`).

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

    @drawable
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
        from analysis import report
        from analysis.store import folder as folders

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
