"""The result of a placement, with the chosen place, the evidence, the certainty of the choice, and its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.figures.canvas import drawable
from analysis.layer_attribution import LayerAttribution, LayerEvidence
from analysis.placement.shifts import Candidate, Shifts, place_name
from analysis.resampling import interval_of, resampled
from audiolens.checks import checked_amount, shown
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer
from audiolens.directions.strategies import Strategy, changed_blocks, described
from audiolens.door import checked_kinds, guarded
from audiolens.errors import InputError
from audiolens.interventions import Intervention
from audiolens.prompts import PromptSet

ALIGNMENT = "alignment"
AS_GOOD = 0.995
"""Places with at least this fraction of the best alignment count as equally good. The simplest of them is chosen."""
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
            the strengths of the other places are not capped.
        evidence: other evidence about each layer, which always includes the direction's norm.
        left_out: requested evidence that could not be computed, and why.
        by: the name of the evidence that decided the choice.
        certainty: the fraction of resamples of the prompts in which the chosen place reaches 99.5% of the best
            alignment. It is NaN if other evidence decided, if there is only one candidate, or if there are too few
            prompts to resample.
        at_strength: alignment of the chosen place at its `strength`, where shifts might no longer be linear in
            strength.
        random: alignments of random directions of the same lengths at the chosen place.
        screened: the strengths that were screened at the chosen place, one row per strength and sign: `strength`
            (signed), `failed` (share of failed clips), `drift` (change in likelihood, as a multiple of the difference
            between two seeds) and `clips` (the number of clips). It is `None` without a screen.
        capacity: the largest screened strength that was tolerated, or 0 if none was tolerated. It is NaN without a
            screen, or if unsteered clips already fail.
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
        distinguishable from 0, or if the screened place tolerated no strength.
        """
        here, row = f"{self.concept}: {self.name} is rejected as a place", self.chosen
        aligned, most = float(row.alignment), max(map(abs, self.random), default=0.0)
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
        if self.capacity == 0 and self.screened is not None:
            return f"{here}, because it tolerates no strength: {_why_not(self.screened, 0)}."
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
            text += f"; chosen by {self.by}, which is largest there among the candidates"
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
        """Return `candidates` with a column `chosen`, and with the other evidence at each candidate's layer.

        The strength of the chosen place is capped, and NaN if the placement is rejected.
        """
        table = self.candidates.assign(chosen=self.candidates.index == self.chosen.name)
        table.loc[table.chosen, "strength"] = float("nan") if self.rejected else self._capped
        for one in self.evidence.evidence:
            by_layer = dict(zip(one.layers, one.values, strict=True))
            table[one.name] = [by_layer.get(layer, float("nan")) for layer in table.layer]
        return table

    @drawable
    def plot(self) -> Any:
        """Draw the alignment of every place and the other evidence about each block (matplotlib figure)."""
        from analysis.placement import figures

        return figures.paper(self)

    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.placement import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        sure = "" if np.isnan(self.certainty) else f" As good as the best in {self.certainty:.0%} of resamples."
        missing = "".join(f" Without {name}: {why}" for name, why in self.left_out.items())
        rejected = f" {self.rejected}" if self.rejected else ""
        return f"Placement({self.concept}: {self.name}. {self.reason}{sure}{missing}{rejected})"


def _why_not(tried: pd.DataFrame, capacity: float) -> str:
    """State what happened at the smallest strength above `capacity` that was tried."""
    above = tried[tried.strength.abs() > capacity]
    row = above[above.strength.abs() == above.strength.abs().min()].sort_values(["failed", "drift"]).iloc[-1]
    if row.failed > SCREEN_FAILED:
        return f"{row.failed:.0%} of {row.clips:.0f} clips failed at strength {row.strength:+.2g}"
    return f"drift at strength {row.strength:+.2g} was {row.drift:.1f} times the difference between two seeds"


def chosen(
    sets: PromptSet,
    places: Sequence[Candidate],
    shifts: Shifts,
    evidence: LayerAttribution,
    *,
    prompts: Sequence[str],
    by: str,
    left_out: Mapping[str, str],
    n_bootstrap: int,
    seed: int,
    row_steps: int,
) -> Placement:
    """Return the placement chosen from the shifts or, if other evidence decides, from that evidence."""
    alignment = shifts.alignment()
    draws = resampled(prompts, n_bootstrap, seed)
    again = np.array([shifts.alignment(rows) for rows in draws]).reshape(len(draws), len(places))
    n_prompts = len(set(prompts))
    ends = [interval_of(again[:, at], n_prompts) for at in range(len(places))]
    table = pd.DataFrame(
        {
            "strategy": [place.strategy for place in places],
            "layer": pd.array([place.layer for place in places], dtype="Int64"),
            "alignment": alignment,
            "low": [end.low for end in ends],
            "high": [end.high for end in ends],
            "gain": shifts.gain,
            "strength": [0.5 / gain if gain > 0 else float("nan") for gain in shifts.gain],
        }
    )
    at, certainty = _first_as_good(alignment), float("nan")
    if by != ALIGNMENT:
        at = _largest(evidence[by], places)
    elif len(places) > 1 and len(again):
        certainty = float(np.mean(again[:, at] >= _enough(again.max(axis=1))))
    return Placement(
        concept=sets.concept,
        poles=sets.poles,
        strategy=places[at].strategy,
        layer=places[at].layer,
        directions=places[at].directions,
        candidates=table,
        evidence=evidence,
        by=by,
        certainty=certainty,
        n_prompts=n_prompts,
        row_steps=row_steps,
        left_out=dict(left_out),
    )


def _first_as_good(alignment: Float[np.ndarray, " candidate"]) -> int:
    """Return the index of the first place that counts as equal to the best."""
    return int(np.flatnonzero(alignment >= _enough(alignment.max()))[0])


def _enough(best: Any) -> Any:
    return best - (1 - AS_GOOD) * np.abs(best)


def _largest(one: LayerEvidence, places: Sequence[Candidate]) -> int:
    """Return the index of the first place at the candidate block with the largest evidence (signed, not absolute)."""
    values = dict(zip(one.layers, one.values, strict=True))
    known = {place.layer: values[place.layer] for place in places if place.layer in values}
    finite = {layer: value for layer, value in known.items() if np.isfinite(value)}
    if not finite:
        raise InputError(f"{one.name} has no value at any candidate's block: give evidence for these blocks.")
    best = max(finite, key=lambda layer: finite[layer])
    return next(at for at, place in enumerate(places) if place.layer == best)
