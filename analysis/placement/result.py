"""The result of a placement, with the chosen place, the evidence, the certainty of the choice, and its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.layer_attribution import LayerAttribution
from analysis.placement.rules import (
    ALIGNMENT,
    CONFIRMED,
    CONSTANCY,
    EQUAL_DAMAGE,
    LEAST_CONSTANCY,
    MIDDLE,
    place_name,
)
from audiolens.checks import checked_amount, shown
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer
from audiolens.directions.strategies import Strategy, changed_blocks, described
from audiolens.door import checked_kinds, guarded
from audiolens.errors import InputError
from audiolens.interventions import Intervention

SCREEN_FAILED = 0.05
"""The largest share of failed clips at which a screened strength is tolerated."""
LEAST_ALIGNMENT = 0.3
"""A placement with a lower alignment is rejected."""


@guarded
@dataclass(frozen=True, eq=False)
class Placement:
    """Where to add a concept's direction, as in `al.steer(placement.directions, **placement.where, strength=...)`.

    Attributes:
        concept, poles: the concept and its poles, the positive pole first.
        strategy, layer: the chosen place. `layer` is the layer whose vector is added. It is `None` for "all-to-all".
        directions: the directions at the site where they were read. For "all-to-all", only the directions of the
            changed blocks are included.
        candidates: one row per place, given by `strategy` and `layer`. `alignment` is the cosine similarity, in the
            Fisher metric, between the shift in next-code logits caused by the direction and the shift caused by naming
            the pole in the prompt. `low` and `high` are the bounds of its interval over prompts. `gain` is the size
            of the shift at a strength of 1, as a fraction of the shift from prompts that name the negative pole to
            prompts that name the positive pole. `strength` is the strength that shifts the predictions for neutral
            music as far towards a pole as naming the pole does, without guidance. Only the chosen place is screened, so
            the strengths of the other places are not capped. If they were computed, `equal_damage` is the alignment at
            the strength `equal_damage_strength`, at which steering changes the predictions as much as the words do,
            measured by the Kullback-Leibler divergence. Both are NaN if no strength does.
        evidence: other evidence about each layer, which always includes the direction's norm.
        left_out: requested evidence that could not be computed, and why.
        by: the rule that decided the choice, the name of the evidence that did, or "confirmed".
        choices: the place that each rule chooses, by rule. Rules that were not computed, and rules whose places are not
            among the candidates, are left out.
        costs: the number of decoder steps, summed over rows, that each rule in `choices` needs by itself. They do not
            include the directions and the codes that were given.
        constancy: the cosine, in the Fisher metric, between the shift of the words and its mean over the frames of a
            clip, averaged over clips.
        certainty: the fraction of resamples of the prompts in which the chosen place reaches 99.5% of the best
            alignment (with the rule "equal_damage": of the best alignment at these strengths; with "constancy": in
            which the constancy is on the same side of its threshold). It is NaN if something else decided, if there is
            only one candidate, or if there are too few prompts to resample.
        at_strength: alignment of the chosen place at its `strength`, where shifts might no longer be linear in
            strength.
        random: alignments of random directions of the same lengths at the chosen place.
        screened: the strengths that were screened at the chosen place, one row per strength and sign: `strength`
            (signed), `failed` (share of failed clips), `drift` (change in likelihood, as a multiple of the difference
            between two seeds) and `clips` (the number of clips). With `confirm`, the first rows are the strengths that
            were tried before the choice. It is `None` without a screen.
        capacity: the largest screened strength that was tolerated, or 0 if none was tolerated. It is NaN without a
            screen, or if unsteered clips already fail.
        heard: with `confirm`, one row per place of which clips were generated, given by `strategy` and `layer`.
            `strength` is the strength that the place tolerates (0 if none), and `span` is the change of `measure`
            between both signs at this strength, as a ratio if `unit` is "ratio". `failed` and `drift` are the larger
            values of both signs. `clips` is the number of steered clips, including those at strengths that
            were not tolerated. The place is chosen among those that took part in two `rounds`. It is `None` without
            `confirm`.
        n_heard: with `confirm`, the number of clips, including the unsteered ones.
        n_prompts: number of different neutral prompts.
        row_steps: number of decoder steps, summed over the rows of all clips that were generated or read.

    A placement does not show that steering at the chosen place works. A direction can shift the next-code predictions
    just as naming the pole does, yet its effect might not accumulate over a clip. The screen uses few clips, and tests
    only whether they fail or become unlikely. Only the candidate places are considered. The shifts caused by the words
    and by the direction are compared on unsteered music. The intervals and the certainty reflect only the variation
    between neutral prompts, with one clip each. They do not include the uncertainty of the direction itself.
    """

    concept: str
    poles: tuple[str, str]
    strategy: Strategy
    layer: int | None
    directions: Directions
    candidates: pd.DataFrame
    evidence: LayerAttribution
    by: str
    certainty: float
    n_prompts: int
    row_steps: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    at_strength: float = float("nan")
    random: tuple[float, ...] = ()
    screened: pd.DataFrame | None = None
    capacity: float = float("nan")
    choices: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, int] = field(default_factory=dict)
    constancy: float = float("nan")
    heard: pd.DataFrame | None = None
    n_heard: int = 0

    @property
    def site(self) -> str:
        return self.directions.meta.site

    @property
    def where(self) -> dict[str, Any]:
        """The arguments for `al.steer`."""
        own = {} if self.layer is None else {"layer": self.layer}
        return {"strategy": self.strategy, **own}

    @property
    def layers(self) -> list[int]:
        """The blocks that are changed."""
        return changed_blocks(self.strategy, self.layer, self.directions)

    @property
    def name(self) -> str:
        return place_name(self.strategy, self.layer)

    @property
    def chosen(self) -> pd.Series:
        """The chosen place's row of `candidates`."""
        mine = self.candidates.strategy == self.strategy
        return self.candidates[mine if self.layer is None else mine & (self.candidates.layer == self.layer)].iloc[0]

    @property
    def strength(self) -> float:
        """A strength to start from: the smaller of `words_strength` and `capacity`.

        Raises:
            InputError: if the placement is rejected (see `rejected`).
        """
        if self.rejected:
            raise InputError(f"{self.rejected} Pass a strength of your own to al.steer, or read other directions.")
        return self._capped

    @property
    def words_strength(self) -> float:
        """The strength that shifts the predictions as far as naming the pole does, without guidance.

        It is NaN if the direction and the words shift the predictions in opposite directions.
        """
        return float(self.chosen.strength)

    @property
    def _capped(self) -> float:
        return self.words_strength if np.isnan(self.capacity) else min(self.words_strength, self.capacity)

    @property
    def rejected(self) -> str:
        """Why this placement should not be used, or an empty string.

        A placement is rejected if its alignment is below 0.3, no larger than that of a random direction, or not
        distinguishable from 0, or if the screened place tolerated no strength. With `confirm`, the alignment does not
        count. Instead, a placement is rejected if its clips do not move the measure from one pole to the other.
        """
        here, row = f"{self.concept}: {self.name} is rejected as a place", self.chosen
        aligned, most = float(row.alignment), max(map(abs, self.random), default=0.0)
        if self.capacity == 0 and self.screened is not None:
            return f"{here}, because it tolerates no strength: {_why_not(self.screened, 0)}."
        if self.by == CONFIRMED:
            moved = self._heard.span > (1 if self._heard.unit == "ratio" else 0)
            return "" if moved else f"{here}, because the span of its clips is {_span_text(self._heard)}."
        if aligned < 0 and aligned < -most:
            return f"{here}, because its alignment is {aligned:.2f}: the direction acts against the words."
        if self.random and aligned <= most:
            return f"{here}, because its alignment of {aligned:.2f} is within chance (random directions: {most:.2f})."
        if row.low <= 0:
            return (
                f"{here}, because its alignment of {aligned:.2f} is within chance (its interval reaches {row.low:.2f})."
            )
        if not aligned >= LEAST_ALIGNMENT:
            return f"{here}, because its alignment of {aligned:.2f} is below {LEAST_ALIGNMENT}."
        return ""

    def steer(self, amount: float = 1.0) -> list[Intervention]:
        """Return the interventions that steer at the chosen place, with `amount` times `strength`.

        A negative amount steers towards the negative pole.

        Raises:
            InputError: if the placement is rejected.
        """
        return steer(self.directions, **self.where, strength=checked_amount("amount", amount) * self.strength)

    @property
    def reason(self) -> str:
        """A sentence that states why this place was chosen."""
        row, low, high = self.chosen, *self.poles[::-1]
        vector = "Every block's own direction" if self.layer is None else f"Block {self.layer}'s direction"
        added = described(self.strategy).added
        text = (
            f"{vector} from {low} to {high}, {added}, shifts the next-code predictions as naming the pole does, "
            f"with a cosine of {row.alignment:.2f}{'' if np.isnan(row.low) else f' [{row.low:.2f}, {row.high:.2f}]'}"
        )
        if not np.isnan(self.at_strength):
            text += f" ({self.at_strength:.2f} at strength {self._capped:.2g})"
        if self.by != ALIGNMENT:
            text += f"; chosen {self._why}"
        else:
            best = self.candidates.iloc[int(self.candidates.alignment.argmax())]
            if best.name != row.name:
                name = place_name(best.strategy, None if pd.isna(best.layer) else best.layer)
                text += f", as good as the best ({name}: {best.alignment:.2f})"
            rest = self.candidates.alignment
            if len(rest) > 1:
                text += f"; places range from {rest.min():.2f} to {rest.max():.2f}"
        if self.random:
            most = max(map(abs, self.random))
            text += f", random directions there reach at most {most:.2f}"
            text += ", which is no less" if most >= abs(row.alignment) else ""
        if row.low <= 0 <= row.high:
            text += ", not distinguishable from chance (its interval covers 0)"
        if self.screened is not None and 0 < self._capped < self.words_strength:
            text += f"; strength capped at {self._capped:.2g}, because {_why_not(self.screened, self.capacity)}"
        return f"{text}."

    @property
    def _heard(self) -> pd.Series:
        """The chosen place's row of `heard`."""
        assert self.heard is not None
        return self.heard[(self.heard.strategy == self.strategy) & (self.heard.layer == self.layer)].iloc[0]

    @property
    def _why(self) -> str:
        """What decided the choice, if it was not alignment."""
        if self.by == MIDDLE:
            return "because it is the middle block"
        if self.by == EQUAL_DAMAGE:
            row = self.chosen
            return (
                f"because, at the strength that changes the predictions as much as the words do "
                f"({row.equal_damage_strength:.2g}), its cosine is the largest ({row.equal_damage:.2f})"
            )
        if self.by == CONSTANCY:
            side = "at least" if self.constancy >= LEAST_CONSTANCY else "below"
            return f"because the constancy of the words' shift, {self.constancy:.2f}, is {side} {LEAST_CONSTANCY}"
        if self.by == CONFIRMED and self.heard is not None:
            return (
                f"because its clips have the widest span ({_span_text(self._heard)} in {self._heard.measure}) of "
                f"{len(self.heard)} places, in {self.n_heard} clips, at a cost of {self.costs[CONFIRMED]:,} decoder "
                "steps"
            )
        return f"by {self.by}, which is largest there among the candidates"

    def with_more(self, row_steps: int, **found: Any) -> Placement:
        """Return a copy that includes further results at the chosen place, and their cost."""
        made = replace(self, row_steps=self.row_steps + row_steps, **found)
        checked_kinds(made)
        if made.certainty == made.certainty and not 0 <= made.certainty <= 1:
            raise InputError(f"certainty={shown(made.certainty)}: expected a share, or NaN.")
        if made.capacity < 0:
            raise InputError(f"capacity={shown(made.capacity)}: expected a strength of at least 0, or NaN.")
        return made

    def to_frame(self) -> pd.DataFrame:
        """Return `candidates` with the columns `chosen` and `rules`, and the other evidence at each candidate's layer.

        `rules` names the rules that choose the place. The strength of the chosen place is capped, and NaN if the
        placement is rejected.
        """
        table = self.candidates.assign(chosen=self.candidates.index == self.chosen.name, rules=self._rules())
        table.loc[table.chosen, "strength"] = float("nan") if self.rejected else self._capped
        for one in self.evidence.evidence:
            by_layer = dict(zip(one.layers, one.values, strict=True))
            table[one.name] = [by_layer.get(layer, float("nan")) for layer in table.layer]
        return table

    def _rules(self) -> list[str]:
        """The rules that choose each candidate."""
        layers = [None if pd.isna(layer) else int(layer) for layer in self.candidates.layer]
        names = [place_name(strategy, layer) for strategy, layer in zip(self.candidates.strategy, layers, strict=True)]
        return [", ".join(rule for rule, place in self.choices.items() if place == name) for name in names]

    @drawable
    def plot(self) -> Any:
        """Draw the alignment of every place and the other evidence about each block (matplotlib figure)."""
        from analysis.placement import figures

        return figures.paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.placement import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        sure = "" if np.isnan(self.certainty) else f" As good as the best in {self.certainty:.0%} of resamples."
        missing = "".join(f" Without {name}: {why}" for name, why in self.left_out.items())
        rejected = f" {self.rejected}" if self.rejected else ""
        return f"Placement({self.concept}: {self.name}. {self.reason}{sure}{missing}{rejected})"


def _span_text(heard: pd.Series) -> str:
    return f"x{heard.span:.2f}" if heard.unit == "ratio" else f"{heard.span:.3g} {heard.unit}".strip()


def _why_not(tried: pd.DataFrame, capacity: float) -> str:
    """State what happened at the smallest strength above `capacity` that was tried."""
    if tried.empty:
        return "the direction does not shift the predictions towards the words, so no strength was tried"
    above = tried[tried.strength.abs() > capacity]
    row = above[above.strength.abs() == above.strength.abs().min()].sort_values(["failed", "drift"]).iloc[-1]
    if row.failed > SCREEN_FAILED:
        return f"{row.failed:.0%} of {row.clips:.0f} clips failed at strength {row.strength:+.2g}"
    return f"drift at strength {row.strength:+.2g} was {row.drift:.1f} times the difference between two seeds"
