"""The result of a study, with its tables, its headline, and the headline's qualifications."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.layer_attribution import LayerAttribution
from analysis.pca import PCAResult
from analysis.placement import Placement
from analysis.similarity import CosineMap
from analysis.statistics import LEVEL, Monotonicity
from analysis.study import sentences, where
from analysis.study.pace import by_the_beat
from analysis.study.scan import Choice
from analysis.study.settings import Settings
from analysis.study.test_result import Outcome
from analysis.study.where import Where
from analysis.sweep.controls import KINDS
from analysis.sweep.runs import Made, told
from analysis.wording import change, clips_of, counted, interval
from audiolens.checks import checked_flags, checked_text
from audiolens.directions.directions import Directions
from audiolens.door import guarded


@guarded
@dataclass(frozen=True, eq=False)
class Study:
    """The result of a study.

    Attributes:
        concept, poles, measure: the steered concept, its positive and negative pole, and the measure of its effect.
        directions: one direction per block.
        cosines, components: cosine similarity between the blocks' directions, and PCA of the poles' activations.
        scan: effect of every place and strength tried on development prompts. The column `stage` is "scan" for the scan
            over all blocks, and "strength" for strengths at the place chosen from the evidence.
        choice, alternatives: the place (strategy and block) and strength chosen from `scan`, and the best place and
            strength for each other strategy.
        response: effect of every condition on test prompts, including steering, controls and references.
        outcomes: the effect of the chosen steering towards either pole.
        monotonicity: rank correlation of the median measure with strength.
        cross: effect of the chosen steering on every measure.
        clips: one row per generated clip, for both splits.
        sounds: a few paired clips, as a map from (condition, prompt, seed) to samples.
        seconds: the time that each stage took.
        where, placement: the patching grids, and the place chosen from the evidence (`None` if not computed).
        side_effects: the side effects of steering, from `analysis.study.side_effects.table`.
        runs: the devices on which the clips of the sweeps were generated, with the number of clips of each.

    A study does not show that the direction *is* the concept, only that it separates these prompts and changes this
    measure. It does not show that the concept is computed in the chosen block, because steering works wherever later
    blocks read the direction. Other music, prompts, lengths or models might behave differently. The chosen place and
    strength were the best of many on development prompts, so only the results on test prompts count. If neither of the
    `outcomes` is `claimable`, the study supports no claim.
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
    side_effects: pd.DataFrame | None = None
    runs: tuple[Made, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return the dose-response table, with one row per condition on test prompts."""
        return self.response

    @property
    def controls(self) -> pd.DataFrame:
        """One row per control, with `kind`, `draw`, `other`, `cosine` with the direction, and the effect at both signs.

        `positive` and `negative` are the effects at plus and minus the chosen strength. Folders written by earlier
        versions contain no cosines.
        """
        mine = self.response[self.response["kind"].isin([*KINDS])]
        columns = {name: mine.get(name, np.nan) for name in ("kind", "draw", "other", "cosine")}
        sides = [mine["mean_change"].where(side) for side in (mine["strength"] > 0, mine["strength"] < 0)]
        rows = pd.DataFrame({**columns, "positive": sides[0], "negative": sides[1]})
        return rows.groupby(["kind", "draw"], sort=False).first().reset_index()

    @property
    def others(self) -> tuple[str, ...]:
        """The other concepts whose directions were controls."""
        return tuple(self.controls["other"].dropna())

    @drawable
    def plot(self) -> Any:
        """Plot the dose-response (matplotlib figure)."""
        from analysis.figures import plots

        return plots.dose_response(self.response, self.measure, self.poles)

    @interactive
    def figure(self) -> Any:
        """Plot the dose-response (plotly figure)."""
        from analysis.figures import screen

        return screen.dose_response(self.response, self.measure, self.poles)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        command: str = "",
        figures: Sequence[str] = (),
    ) -> Path:
        """Write tables, figures, sound, directions and the page (see `analysis.report`).

        Figures are written as SVG in the column widths of papers, with their captions in a file of their own, and also
        in the kinds of files in `figures` ("pdf", "png").
        """
        checked_flags(overwrite=overwrite)
        checked_text("command", command)
        from analysis import report
        from analysis.report.writer import checked_kinds
        from analysis.store import folder as folders

        checked_kinds(figures)
        with folders.fresh(folder, overwrite=overwrite) as work:
            report.write(self, work, command=command, figures=figures)
        return Path(folder)

    def push_to_hub(
        self,
        repo_id: str,
        folder: str | os.PathLike[str],
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Add a study",
    ) -> str:
        """Upload the folder of this study to the Hugging Face hub (`analysis.study.push_to_hub`).

        Raises:
            InputError: if the folder contains another study, or in the cases of `analysis.study.push_to_hub`.
        """
        from analysis.study import hub

        return hub.push_to_hub(folder, repo_id, private=private, token=token, message=message, only=repr(self))

    def layer_evidence(self, placed: bool = True) -> LayerAttribution:
        """Return the evidence about each block, to draw in one figure.

        The evidence comes from placement if `placed` is true and there is a placement, and otherwise from patching.
        """
        return where.evidence(self.directions, self.where, self.placement if placed else None)

    @property
    def words(self) -> tuple[str, str]:
        """What steering does towards the positive and the negative pole, such as "faster" and "slower"."""
        return sentences.words_of(self.poles, self.measure)

    @property
    def headline(self) -> str:
        """The finding in one plain sentence, without statistics."""
        from analysis.figures.style import name_of

        return sentences.headline(self.outcomes, self.words, name_of(self.measure))

    @property
    def verdict(self) -> str:
        """What the controls did, in words."""
        return sentences.verdict(self.outcomes)

    @property
    def finding(self) -> str:
        """The finding, which states the effect towards both poles in one sentence, with intervals in percent."""
        return (
            f"{_effects(self.outcomes, self.words)} on "
            f"{clips_of(self.settings.test, self.settings.test_seeds, 'neutral prompt')}, steering {self.concept} at "
            f"strength ±{self.choice.strength:g}."
        )

    @property
    def qualification(self) -> str:
        """The context of the finding, with the place, the controls, failed clips, and the effect of prompting."""
        sentences = [f"Strategy: {self.choice.description}.", *(_qualified(one) for one in self.outcomes)]
        sentences += by_the_beat(self.measure, self.cross, self.choice.strength)
        if any(one.towards and not one.testable for one in self.outcomes):
            sentences.append("Too few controls were run to say whether another direction would do the same.")
        if devices := told(self.runs):
            sentences.append(f"Clips were generated on different devices, which can round differently: {devices}.")
        return " ".join(sentences)

    def __repr__(self) -> str:
        return f"Study({self.concept} on {self.model!r}: {self.finding} {self.qualification})"


def _effects(outcomes: tuple[Outcome, Outcome], words: tuple[str, str]) -> str:
    """Return the effects towards both poles as text, such as "+75% faster [42, 100] and −37% slower [−50, −28]".

    If only one effect is reliable, it comes first.
    """
    named = sorted(zip(outcomes, words, strict=True), key=lambda pair: (not pair[0].towards, not _is_measured(pair[0])))
    (first, word), (second, other) = named
    first_ends, second_ends = (interval(one.low, one.high) for one in (first, second))
    if not _is_measured(first):
        return "No measurable change"
    if first.towards:
        lead = f"{change(first.effect)} {word} {first_ends}"
        if second.towards:
            return f"{lead} and {change(second.effect)} {other} {second_ends}"
        if not _is_measured(second):
            return f"{lead} but not measurably {other}"
        return f"{lead} but not reliably {other} ({change(second.effect)} {second_ends})"
    lead = f"{change(first.effect)} {first_ends} towards {first.pole}"
    if not _is_measured(second):
        return f"{lead}, not reliable, and not measurable towards {second.pole},"
    return f"{lead} and {change(second.effect)} {second_ends} towards {second.pole}, neither reliable,"


def _qualified(one: Outcome) -> str:
    """State, for one pole, the rank among the controls, the share of failed clips, and the effect of prompting."""
    if not _is_measured(one):
        return f"Towards {one.pole}: no clip could be measured."
    facts = [f"{one.failed:.0%} of clips failed", f"prompting gave {change(one.prompted)}"]
    if one.towards and one.testable:
        facts.insert(0, _ranked(one))
    if one.towards and one.rivals:
        facts.insert(0, f"the direction of {' and '.join(one.rivals)} has as large an effect")
    return f"Towards {one.pole}: {'; '.join(facts)}."


def _ranked(one: Outcome) -> str:
    """Return the rank p-value as text, such as "p = 0.024 among 41 controls, 0.048 corrected for 2 tests (...)"."""
    if np.isnan(one.p_controls):
        return "the controls could not be measured"
    counts = [
        counted(n, words)
        for n, words in ((one.n_random, "random direction"), (one.n_shuffled, "balanced shuffle"),
                         (one.n_other, "other concept"))
        if n
    ]  # fmt: skip
    found = (
        f"p = {one.p_controls:.2g} among {counted(one.n_controls, 'control')}, {one.p_corrected:.2g} corrected for "
        f"{counted(one.n_tests, 'test')} ({', '.join(counts)})"
    )
    return found if one.p_corrected <= LEVEL else f"not distinguished from the controls: {found}"


def _is_measured(one: Outcome) -> bool:
    return bool(np.isfinite(one.effect))
