"""The search for one clip's strength: which strength to try next, given the clip's values at those tried so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from audiolens.directions.calibration import Calibration
from audiolens.measure.targets import deviation, is_near, is_relative, with_unit

INNER = 0.15
"""A new strength stays at least this share of an interval away from its ends, so that every clip tells something."""
NEAR = 3.0
"""How far from the target an interval is still promising, as a multiple of the tolerance."""
FINEST, OUTERMOST = 1e-3, 0.02
"""Below these shares of the largest strength, intervals between two strengths, or up to the limit, are not divided."""


@dataclass(frozen=True)
class Goal:
    """The value that a measure should take."""

    measure: str
    target: float
    tolerance: float

    def above(self, value: float) -> float:
        """How far a value is above the target; NaN if the value is undefined."""
        return deviation(self.measure, value, self.target)

    def text(self, value: float) -> str:
        return with_unit(self.measure, value)


@dataclass(frozen=True)
class Try:
    """One clip of a row: its strength, its measured value (NaN if undefined), and whether it failed."""

    strength: float
    value: float
    failed: bool


@dataclass(eq=False)
class Search:
    """The search of one row. `low` and `high` are the strengths beyond which nothing is tried."""

    goal: Goal
    low: float
    high: float
    tries: list[Try] = field(default_factory=list)
    stuck: str = ""
    """Why nothing further can be tried, or an empty text."""

    def __post_init__(self) -> None:
        self.widest = max(abs(self.low), abs(self.high))

    def add(self, one: Try) -> bool:
        """Add a clip, and return whether it is the closest to the target so far."""
        self.tries.append(one)
        if one.failed and one.strength == 0:
            self.stuck = "the unsteered clip fails (see measure.failures), so nothing can be compared with it"
        if one.failed:
            inner = [other.strength for other in self.sound if abs(other.strength) < abs(one.strength)]
            if one.strength > 0:
                self.high = (one.strength + max([0.0, *inner])) / 2
            elif one.strength < 0:
                self.low = (one.strength + min([0.0, *inner])) / 2
        return self.best is one or len(self.tries) == 1

    @property
    def sound(self) -> list[Try]:
        """The clips that did not fail and were measured, in the order of their strengths."""
        return sorted((one for one in self.tries if math.isfinite(self._above(one))), key=lambda one: one.strength)

    @property
    def best(self) -> Try | None:
        """The clip that is closest to the target."""
        return min(self.sound, key=lambda one: abs(self.goal.above(one.value)), default=None)

    @property
    def reached(self) -> bool:
        best = self.best
        return best is not None and is_near(self.goal.measure, best.value, self.goal.target, self.goal.tolerance)

    def following(self, known: Calibration | None, rising: bool) -> float | None:
        """Return the strength to try next, or `None` if the target was reached or nothing is left to try.

        `rising` states whether the measure rises with the strength, as far as this is known.
        """
        if self.reached or self.stuck:
            return None
        if not self.tries:
            return 0.0
        inside = self._between()
        if inside is not None:
            return inside
        if known is not None and len(self.tries) == 1 and self.sound:
            guess = _guess(known, self.goal, self.sound[0].value)
            if guess != 0:
                return min(max(guess, self.low), self.high)
        return self._outward(rising)

    def _between(self) -> float | None:
        """Return a strength between two that were tried, once the values lie on both sides of the target.

        A measure can jump, because a small change of strength can change which notes are played. The widest interval
        across the target is therefore divided first, and once it is narrow, also wider ones near the target.
        """
        tries = sorted(self.tries, key=lambda one: one.strength)
        intervals = [
            (second.strength - first.strength, first.strength, *map(self._above, (first, second)))
            for first, second in zip(tries, tries[1:], strict=False)
        ]
        # An interval that ends at a clip that failed or is undefined does not show where the target is.
        intervals = [one for one in intervals if all(map(math.isfinite, one[2:]))]
        if not any(one * two < 0 for _, _, one, two in intervals):
            return None
        width, start, one, two = max(intervals, key=lambda each: each[0] * self._promise(*each[2:]))
        if width < FINEST * self.widest:
            self.stuck = f"{self.goal.measure} jumps over the target at strength {start:.3g}"
            return None
        share = one / (one - two) if one * two < 0 else 0.5
        return start + width * min(max(share, INNER), 1 - INNER)

    def _above(self, one: Try) -> float:
        return math.nan if one.failed else self.goal.above(one.value)

    def _promise(self, one: float, two: float) -> float:
        """Return how promising an interval is, between 0 and 1, given how far its ends are above the target."""
        near = NEAR * self.goal.tolerance
        return 1.0 if one * two < 0 else math.exp(-min(abs(one), abs(two)) / near)

    def _outward(self, rising: bool) -> float | None:
        """Return a strength beyond those tried, on the side on which the target is expected."""
        best = self.best
        upward = rising == (best is None or self.goal.above(best.value) < 0)
        limit = self.high if upward else self.low
        side = [one for one in self.tries if one.strength == 0 or (one.strength > 0) == upward]
        outermost = max((one for one in side if not one.failed), key=lambda one: abs(one.strength))
        furthest = outermost.strength
        if abs(limit) - abs(furthest) <= OUTERMOST * self.widest:
            ended = "beyond which clips fail" if any(one.failed for one in side) else "the limit"
            value = self._above(outermost)
            told = self.goal.text(outermost.value) if math.isfinite(value) else "undefined"
            self.stuck = f"at strength {furthest:.3g}, {ended}, {self.goal.measure} is still {told}"
            return None
        return math.copysign(min(abs(limit), max(2 * abs(furthest), abs(limit) / 4)), limit)


def rises(searches: Sequence[Search], known: Calibration | None) -> bool:
    """Return whether the measure rises with the strength, by the calibration or else by all clips so far."""
    if known is not None:
        return known.values[-1] >= known.values[0]
    slopes = [
        np.sign(one.goal.above(two.value) - one.goal.above(first.value))
        for one in searches
        for first, two in zip(one.sound, one.sound[1:], strict=False)
    ]
    return float(np.sum(slopes)) >= 0


def _guess(known: Calibration, goal: Goal, unsteered: float) -> float:
    """Return the strength at which the calibration changes as much as the clip has to change."""
    at_zero, change = known.at(0.0), -goal.above(unsteered)
    wanted = at_zero * math.exp(change) if is_relative(goal.measure) else at_zero + change
    low, high = known.range
    return known.strength(min(max(wanted, low), high))
