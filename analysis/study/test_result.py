"""Test the chosen steering on test prompts, against controls and references.

Controls are random directions, balanced shuffles and other concepts' directions (`analysis.sweep.controls`), added with
the same norm at the same place. Controls are run on fewer (prompt, seed) pairs than the steering. The effect of
steering over those pairs is ranked among the controls' effects. References use the same seeds with prompts that ask for
a pole in words, both without steering and with steering towards the other pole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics import FEWEST_CONTROLS, LEVEL, MOST_FAILED, Monotonicity, correct, spearman
from analysis.study.scan import Choice
from analysis.sweep import BASELINE, Condition, effects
from analysis.sweep.controls import KINDS, drawn
from analysis.sweep.ranks import ranked
from analysis.sweep.response import KEYS, unit_of_change
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer
from audiolens.errors import InputError
from audiolens.interventions import Branch
from audiolens.prompts import PromptSet

CROSSED = ("tempo_ioi", "tempo", "onset_rate", "brightness", "pitch", "pulse_clarity", "loudness")
"""Measures whose change is reported in addition to the concept's own measure.

Mode is left out because it varies too little.
"""


@dataclass(frozen=True)
class Outcome:
    """The effect of steering towards one pole on the concept's measure.

    Attributes:
        pole, strength: the pole, and the coefficient of the direction. A positive strength steers towards the positive
            pole.
        effect, low, high: median of steered / baseline - 1 over paired clips, and its interval over prompts.
        failed: share of steered clips that failed, that is, are no longer music. Failed clips count as an effect of
            zero.
        median: median of the measure over the steered clips that did not fail.
        prompted: the effect of asking for the pole in words instead.
        opposed: the effect of this steering while the prompt asks for the other pole.
        ranked: the mean change (`statistics.Effect.mean`) over the (prompt, seed) pairs on which controls were run.
            This value is ranked among the controls' mean changes.
        p_random, n_random: p-value from the rank among the random directions, and their number n. The p-value is at
            least 1 / (n + 1).
        p_shuffled, n_shuffled: p-value and number for balanced shuffles of the poles (p is NaN if there are none).
        p_other, n_other: p-value and number for other concepts' directions.
        p_controls, n_controls: p-value and number for all these controls together.
        p_corrected, n_tests: `p_controls`, corrected for the number of tests (Holm). The tests are both poles of every
            reported concept.
        rivals: other concepts whose direction has at least as large an effect.
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
    ranked: float = float("nan")
    p_random: float = float("nan")
    n_random: int = 0
    p_shuffled: float = float("nan")
    n_shuffled: int = 0
    p_other: float = float("nan")
    n_other: int = 0
    p_controls: float = float("nan")
    n_controls: int = 0
    p_corrected: float = float("nan")
    n_tests: int = 1
    rivals: tuple[str, ...] = ()

    @property
    def towards(self) -> bool:
        """Whether the measure moved towards the pole, the interval excludes zero, and few clips failed."""
        right = self.low > 0 if self.strength > 0 else self.high < 0
        return bool(right and self.failed <= MOST_FAILED)

    @property
    def testable(self) -> bool:
        """Whether there are enough random directions and shuffles, and enough controls for a `p_corrected` of .05."""
        least = self.n_tests / (self.n_controls + 1)
        return min(self.n_random, self.n_shuffled) >= FEWEST_CONTROLS and least <= LEVEL

    @property
    def claimable(self) -> bool:
        """Whether a study can claim the effect: it is `towards` the pole and exceeds the controls' effects.

        In addition, `p_corrected` is at most .05, and no other concept's direction has as large an effect.
        """
        return bool(self.towards and self.testable and self.p_corrected <= LEVEL and not self.rivals)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rivals": ", ".join(self.rivals), "claimable": self.claimable}


def conditions(
    directions: Directions,
    sets: PromptSet,
    choice: Choice,
    alternatives: Sequence[Choice] = (),
    *,
    branch: Branch = "both",
    doses: Sequence[float] = (0.5, 1.0),
) -> list[Condition]:
    """Return the conditions of the test clips: baseline, steering and references.

    The strengths are `doses` times the chosen strength, with both signs.
    """
    shares = sorted({sign * dose for dose in doses for sign in (-1, 1)})
    listed = [Condition(BASELINE, labels=_labels(BASELINE))]
    for kind, places in (("steered", [choice]), ("alternative", alternatives)):
        for place in places:
            for share in shares:
                listed.append(_steered(kind, directions, place, share * place.strength, branch))
    for pole, other, sign in zip(sets.poles, reversed(sets.poles), (1, -1), strict=True):
        asked = Condition(f"prompted {pole}", ask=_asking(sets, pole), labels=_labels("prompted", pole=pole))
        steps = tuple(steer(directions, **choice.where, strength=sign * choice.strength, branch=branch))
        known = _labels("opposed", choice.strategy, choice.layer, sign * choice.strength, pole=other)
        listed += [asked, Condition(f"steered {pole}, asked {other}", steps, _asking(sets, other), known)]
    return listed


def control_conditions(
    directions: Directions,
    choice: Choice,
    others: Mapping[str, Directions] | None = None,
    *,
    n_random: int,
    n_shuffled: int,
    branch: Branch = "both",
    first_draw: int = 0,
) -> list[Condition]:
    """Return the baseline and the controls, with both signs of the chosen strength.

    Random directions and shuffles use the seeds `first_draw`, `first_draw` + 1, ...
    """
    listed = [Condition(BASELINE, labels=_labels(BASELINE))]
    for one in drawn(directions, n_random=n_random, n_shuffled=n_shuffled, others=others, first_draw=first_draw):
        for sign in (-1, 1):
            labels = one.labels(choice.layer)
            listed.append(_steered(one.kind, one.directions, choice, sign * choice.strength, branch, **labels))
    return listed


def on_same_clips(tested: pd.DataFrame, controls: pd.DataFrame, measured: str) -> pd.DataFrame:
    """Return the effects of the test conditions over the (prompt, seed) pairs on which controls were also run, without
    confidence intervals.
    """
    clips = pd.MultiIndex.from_frame(controls[list(KEYS)].drop_duplicates())
    return effects(tested[pd.MultiIndex.from_frame(tested[list(KEYS)]).isin(clips)], measured, n_bootstrap=0)


def outcomes(
    response: pd.DataFrame, poles: Sequence[str], choice: Choice, same_clips: pd.DataFrame | None = None
) -> tuple[Outcome, Outcome]:
    """Return the outcomes of steering towards the positive and the negative pole.

    `response` is `sweep.effects` of the concept's measure over `conditions` and `control_conditions`. `same_clips`
    contains the effects of steering over the (prompt, seed) pairs on which controls were run (`on_same_clips`). By
    default, the effects in `response` are used.
    """
    controls = response[response["kind"].isin([*KINDS]) & (response["strength"].abs() == choice.strength)]
    among = response if same_clips is None else same_clips
    found = []
    for pole, sign in zip(poles, (1, -1), strict=True):
        strength = sign * choice.strength
        here = response[response["strength"] == strength]
        if not (here["kind"] == "steered").any():
            raise InputError(
                f"strength {strength:+g} was chosen, but no clip was steered with it: run the study again."
            )
        steered = here[here["kind"] == "steered"].iloc[0]
        compared = float(among[(among["kind"] == "steered") & (among["strength"] == strength)]["mean_change"].iloc[0])
        ranks = ranked(compared, strength, controls)
        prompted = response[(response["kind"] == "prompted") & (response["pole"] == pole)]
        opposed = here[here["kind"] == "opposed"]
        found.append(
            Outcome(
                pole=pole,
                strength=strength,
                **{name: float(steered[name]) for name in ("effect", "low", "high", "failed", "median")},
                prompted=float(prompted["effect"].iloc[0]) if len(prompted) else float("nan"),
                opposed=float(opposed["effect"].iloc[0]) if len(opposed) else float("nan"),
                ranked=compared,
                **ranks.columns(),
                rivals=ranks.rivals,
            )
        )
    first, second = corrected(found)
    return first, second


def corrected(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return outcomes that are reported together, with p-values corrected for all of them (Holm).

    The outcomes are, for example, those of both poles of several concepts. An outcome that could not be measured counts
    as a test with p = 1.
    """
    p = correct([1.0 if np.isnan(one.p_controls) else one.p_controls for one in outcomes])
    return tuple(
        replace(one, p_corrected=one.p_controls if np.isnan(one.p_controls) else float(value), n_tests=len(outcomes))
        for one, value in zip(outcomes, p, strict=True)
    )


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


def _steered(kind: str, source: Directions, place: Choice, strength: float, branch: Branch, **labels: Any) -> Condition:
    steps = tuple(steer(source, **place.where, strength=strength, branch=branch))
    known = {"strategy": place.strategy, "layer": place.layer, "strength": strength, **labels}
    named = [labels[key] for key in ("draw", "other") if labels.get(key) is not None]
    name = " ".join([kind, place.strategy, *map(str, named), f"{strength:+g}"])
    return Condition(name, steps, labels=_labels(kind, **known))


def _asking(sets: PromptSet, pole: str) -> Any:
    return lambda prompt: sets.prompted(prompt, pole)


def _labels(
    kind: str,
    strategy: Any = None,
    layer: Any = None,
    strength: float = 0.0,
    draw: Any = None,
    pole: Any = None,
    other: Any = None,
    cosine: Any = None,
) -> dict[str, Any]:
    return {"split": "test", "kind": kind, "strategy": strategy, "layer": layer, "strength": strength, "draw": draw,
            "pole": pole, "other": other, "cosine": cosine}  # fmt: skip
