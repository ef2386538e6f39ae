"""Test the chosen steering on test prompts, against controls and references.

Controls are norm-matched random directions and directions of shuffled labels, added in the same way. References use
the same seeds with prompts that ask for a pole in words, both without steering and with steering towards the other
pole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis.statistics import FEWEST_CONTROLS, LEVEL, MOST_FAILED, Monotonicity, spearman
from analysis.study.scan import Choice
from analysis.sweep import BASELINE, Condition, effects
from analysis.sweep.response import rank_among, unit_of_change
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer
from audiolens.errors import InputError
from audiolens.interventions import Branch
from audiolens.prompts import PromptSet

CROSSED = ("tempo_ioi", "tempo", "onset_rate", "brightness", "pitch", "pulse_clarity", "loudness")
"""Measures whose change is reported in addition to the concept's own. Mode is left out because it varies too little."""


@dataclass(frozen=True)
class Outcome:
    """The effect of steering towards one pole on the concept's measure.

    Attributes:
        pole, strength: the pole, and the coefficient of the direction. Positive means towards the positive pole.
        effect, low, high: median of steered / baseline - 1 over paired clips, and its 95% interval over prompts.
        failed: share of clips that are no longer music. They count as no effect.
        median: median of the measure over the steered clips that did not fail.
        prompted: the effect of asking for the pole in words instead.
        opposed: the effect of this steering while the prompt asks for the other pole.
        p_random, n_random: p from the rank among n random directions. It is at least 1 / (n + 1).
        p_shuffled, n_shuffled: p from the rank among n directions of shuffled labels (NaN if there are none).
    """

    pole: str
    strength: float
    effect: float
    low: float
    high: float
    failed: float
    median: float
    prompted: float
    opposed: float
    p_random: float
    n_random: int
    p_shuffled: float
    n_shuffled: int

    @property
    def towards(self) -> bool:
        """Whether the measure moved towards the pole, the interval excludes zero, and few clips failed."""
        right = self.low > 0 if self.strength > 0 else self.high < 0
        return bool(right and self.failed <= MOST_FAILED)

    @property
    def claimable(self) -> bool:
        """Whether the effect is `towards` the pole and larger than that of random directions, so it can be claimed."""
        return bool(self.towards and self.n_random >= FEWEST_CONTROLS and self.p_random <= LEVEL)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "claimable": self.claimable}


def conditions(
    directions: Directions,
    sets: PromptSet,
    choice: Choice,
    alternatives: Sequence[Choice] = (),
    *,
    n_random: int = 5,
    n_shuffled: int = 0,
    branch: Branch = "both",
    first_draw: int = 0,
    doses: Sequence[float] = (0.5, 1.0),
) -> list[Condition]:
    """Return all conditions of the test clips, which the module's docstring describes.

    The strengths are `doses` times the chosen one, with both signs. Controls use the seeds `first_draw`,
    `first_draw` + 1, ...
    """
    shares = sorted({sign * dose for dose in doses for sign in (-1, 1)})
    listed = [Condition(BASELINE, labels=_labels(BASELINE))]

    def add(kind: str, source: Directions, place: Choice, strength: float, **labels: Any) -> None:
        steps = tuple(steer(source, **place.where, strength=strength, branch=branch))
        known = {"strategy": place.strategy, "layer": place.layer, "strength": strength, **labels}
        name = " ".join([kind, place.strategy, *(f"{value}" for value in labels.values()), f"{strength:+g}"])
        listed.append(Condition(name, steps, labels=_labels(kind, **known)))

    for kind, places in (("steered", [choice]), ("alternative", alternatives)):
        for place in places:
            for share in shares:
                add(kind, directions, place, share * place.strength)
    for kind, count, draw in (
        ("random", n_random, directions.random_like),
        ("shuffled", n_shuffled, directions.shuffled),
    ):
        for number in range(count):
            control = draw(first_draw + number)
            for sign in (-1, 1):
                add(kind, control, choice, sign * choice.strength, draw=number)
    for pole, other, sign in zip(sets.poles, reversed(sets.poles), (1, -1), strict=True):
        asked = Condition(f"prompted {pole}", ask=_asking(sets, pole), labels=_labels("prompted", pole=pole))
        steps = tuple(steer(directions, **choice.where, strength=sign * choice.strength, branch=branch))
        known = _labels("opposed", choice.strategy, choice.layer, sign * choice.strength, pole=other)
        listed += [asked, Condition(f"steered {pole}, asked {other}", steps, _asking(sets, other), known)]
    return listed


def outcomes(response: pd.DataFrame, poles: Sequence[str], choice: Choice) -> tuple[Outcome, Outcome]:
    """Return the outcomes of steering towards the positive and the negative pole.

    `response` is `sweep.effects` of the concept's measure over `conditions`.
    """
    found = []
    for pole, sign in zip(poles, (1, -1), strict=True):
        strength = sign * choice.strength
        here = response[response["strength"] == strength]
        if not (here["kind"] == "steered").any():
            raise InputError(
                f"strength {strength:+g} was chosen, but no clip was steered with it: run the study again."
            )
        steered = here[here["kind"] == "steered"].iloc[0]
        ranks = {
            kind: rank_among(steered["effect"], here.loc[here["kind"] == kind, "effect"], sign)
            for kind in ("random", "shuffled")
        }
        prompted = response[(response["kind"] == "prompted") & (response["pole"] == pole)]
        opposed = here[here["kind"] == "opposed"]
        found.append(
            Outcome(
                pole=pole,
                strength=strength,
                **{name: float(steered[name]) for name in ("effect", "low", "high", "failed", "median")},
                prompted=float(prompted["effect"].iloc[0]) if len(prompted) else float("nan"),
                opposed=float(opposed["effect"].iloc[0]) if len(opposed) else float("nan"),
                p_random=ranks["random"][0],
                n_random=ranks["random"][1],
                p_shuffled=ranks["shuffled"][0],
                n_shuffled=ranks["shuffled"][1],
            )
        )
    return found[0], found[1]


def monotonicity(response: pd.DataFrame) -> Monotonicity:
    """Return the rank correlation of the median measure with strength, over the baseline and steered conditions."""
    mine = response[response["kind"].isin([BASELINE, "steered"])]
    return spearman(mine["strength"].to_numpy(), mine["median"].to_numpy())


def cross_effects(table: pd.DataFrame, n_bootstrap: int = 1000, measures: Sequence[str] = CROSSED) -> pd.DataFrame:
    """Return the effect of the chosen steering on every measure, with one row per measure and strength.

    The columns `effect`, `low` and `high` are ratios, except for loudness, whose change is in dB (`unit`).
    """
    mine = table[table["kind"].isin([BASELINE, "steered"])]
    frames = []
    for name in measures:
        if name in mine:
            found = effects(mine, name, n_bootstrap)
            frames.append(found[found["kind"] == "steered"].assign(measure=name, unit=unit_of_change(name)))
    wanted = ["measure", "unit", "strength", "effect", "low", "high", "failed", "median", "clips"]
    return pd.concat(frames, ignore_index=True)[wanted]


def _asking(sets: PromptSet, pole: str) -> Any:
    return lambda prompt: sets.prompted(prompt, pole)


def _labels(
    kind: str, strategy: Any = None, layer: Any = None, strength: float = 0.0, draw: Any = None, pole: Any = None
) -> dict[str, Any]:
    return {"split": "test", "kind": kind, "strategy": strategy, "layer": layer, "strength": strength, "draw": draw,
            "pole": pole}  # fmt: skip
