"""The search for one clip's strength: which strength to try next, given the clip's values at those tried so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from audiolens.directions.calibration import Calibration
from audiolens.measure.targets import deviation, is_near, is_relative, with_unit

INNER = 0.15
"""A new strength stays at least this share of an interval away from its ends, so that every clip tells something."""
NEAR = 2.0
"""How far from the target strengths are still promising, as a multiple of the tolerance."""
FINEST, OUTERMOST = 1e-3, 0.02
"""Below these shares of the largest strength, nothing is tried: for the width times the promise of untried strengths,
and for the width of a range up to the limit.
"""
FIRST_STEP = 0.25
"""The first step away from 0, as a share of the limit. Further steps double the strength."""


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


class Untried(NamedTuple):
    """Strengths of which none was tried: between two tries, or from the outermost try to the limit.

    `one` and `two` state how far the values at `start` and `end` are above the target. `two` is `None` at the limit.
    """

    start: float
    end: float
    one: float
    two: float | None

    @property
    def width(self) -> float:
        return abs(self.end - self.start)

    @property
    def contains_target(self) -> bool:
        return self.two is not None and self.one * self.two < 0

    def promise(self, near: float) -> float:
        """How promising these strengths are, between 0 and 1."""
        if self.contains_target:
            return 1.0
        away = abs(self.one) if self.two is None else min(abs(self.one), abs(self.two))
        return math.exp(-away / near)


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
        if one.strength and self._ends_its_side(one):
            nearest = max((abs(other.strength) for other in self._inside(one)), default=0.0)
            limit = math.copysign((abs(one.strength) + nearest) / 2, one.strength)
            self.low, self.high = (limit, self.high) if one.strength < 0 else (self.low, limit)
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
        values = [self._above(one) for one in self.sound]
        if any(one * two < 0 for one, two in zip(values, values[1:], strict=False)):
            return self._most_promising()
        if known is not None and len(self.tries) == 1 and self.sound:
            guess = min(max(_guess(known, self.goal, self.sound[0].value), self.low), self.high)
            if guess != 0:
                return guess
        return self._outward(rising)

    def _most_promising(self) -> float | None:
        """Return a strength among those that may reach the target, once the values lie on both sides of it.

        A measure can jump, because a small change of strength can change which notes are played. The widest interval
        across the target is therefore divided first. Once it is narrow, wider ones near the target are divided too,
        and the strengths beyond the outermost clips are tried, on both sides.
        """
        near, untried = NEAR * self.goal.tolerance, self._untried()
        worth = [each.width * each.promise(near) for each in untried]
        if max(worth, default=0.0) < FINEST * self.widest:
            jump = max((each for each in untried if each.contains_target), key=lambda each: each.width, default=None)
            self.stuck = "between the strengths on both sides of the target, clips fail or cannot be measured"
            if jump is not None:
                self.stuck = f"{self.goal.measure} jumps over the target at strength {jump.start:.3g}"
            return None
        best = untried[worth.index(max(worth))]
        if best.two is None:
            return self._step(best.start, best.end)
        share = best.one / (best.one - best.two) if best.contains_target else 0.5
        return best.start + best.width * min(max(share, INNER), 1 - INNER)

    def _untried(self) -> list[Untried]:
        """The intervals between tries and up to the limits. One that ends at a clip that is not sound shows nothing."""
        tries = sorted(self.tries, key=lambda one: one.strength)
        between = [
            Untried(one.strength, two.strength, self._above(one), self._above(two))
            for one, two in zip(tries, tries[1:], strict=False)
            if math.isfinite(self._above(one)) and math.isfinite(self._above(two))
        ]
        beyond = []
        for outermost, limit in ((self.sound[0], self.low), (self.sound[-1], self.high)):
            start = outermost.strength
            further = [one for one in tries if min(start, limit) <= one.strength <= max(start, limit)]
            wide = (limit - start) * math.copysign(1, limit) > OUTERMOST * self.widest
            if wide and further == [outermost]:
                beyond.append(Untried(start, limit, self._above(outermost), None))
        return [*between, *beyond]

    @staticmethod
    def _step(start: float, limit: float) -> float:
        """Return the next strength from `start` outward: twice as large, or a first step, and at most the limit."""
        size = max(abs(start), FIRST_STEP * abs(limit))
        return start + math.copysign(min(size, abs(limit - start)), limit - start)

    def _ends_its_side(self, one: Try) -> bool:
        """Whether nothing is tried beyond a clip: it fails, or it cannot be measured, although one nearer to 0 can.

        A clip that is not sound does not end a side on which a clip further out is.
        """
        unsound = not math.isfinite(self._above(one)) and (one.failed or len(self._inside(one)) > 0)
        return unsound and not any(
            abs(other.strength) > abs(one.strength) and other.strength * one.strength > 0 for other in self.sound
        )

    def _inside(self, one: Try) -> list[Try]:
        """The sound clips nearer to 0 on the same side, the unsteered clip among them."""
        return [
            other for other in self.sound
            if abs(other.strength) < abs(one.strength) and other.strength * one.strength >= 0
        ]  # fmt: skip

    def _above(self, one: Try) -> float:
        return math.nan if one.failed else self.goal.above(one.value)

    def _outward(self, rising: bool) -> float | None:
        """Return a strength beyond those tried, on the side on which the target is expected."""
        best = self.best
        upward = rising == (best is None or self.goal.above(best.value) < 0)
        limit = self.high if upward else self.low
        side = [one for one in self.tries if one.strength == 0 or (one.strength > 0) == upward]
        passed = [one for one in side if one.strength == 0 or not self._ends_its_side(one)]
        outermost = max(passed, key=lambda one: abs(one.strength))
        furthest = outermost.strength
        if abs(limit) - abs(furthest) <= OUTERMOST * self.widest:
            ended = "the limit"
            if len(passed) < len(side):
                ended = f"beyond which clips {'fail' if any(one.failed for one in side) else 'cannot be measured'}"
            value = self._above(outermost)
            told = self.goal.text(outermost.value) if math.isfinite(value) else "undefined"
            self.stuck = f"at strength {furthest:.3g}, {ended}, {self.goal.measure} is still {told}"
            return None
        return self._step(furthest, limit)


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
