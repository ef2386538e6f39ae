"""Compare places at strengths that change the predictions equally much, namely as much as the words do.

At the small strength of `shifts_of`, alignment does not depend on strength. At the strength found here, it does, so a
place where larger strengths have another effect than small ones gets a lower alignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from analysis.placement.shifts import Candidate, Shifts, shifts_of
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import AudioLens

TOLERANCE = 0.05
"""The largest relative difference between the two divergences. It is half as large for the strengths."""
MOST_GROWTH = 64.0
"""The largest strength that is tried, relative to a first-order estimate. The final norm limits how far a vector can
move the predictions, so the divergence of the words may be out of reach."""
MOST_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class EqualDamage:
    """The shifts at the strengths at which steering diverges from the unsteered predictions as far as the words do.

    Attributes:
        strength: the strength of each place, or NaN if no strength that was tried diverges as far.
        shifts: the shifts at these strengths. `shifts.row_steps` counts all strengths that were tried.
    """

    strength: Float[np.ndarray, " candidate"]
    shifts: Shifts

    def alignment(self, rows: Int[np.ndarray, " row"] | slice = slice(None)) -> Float[np.ndarray, " candidate"]:
        """Return the cosine with the shift of the words over the given rows, or NaN without a strength."""
        return np.where(np.isfinite(self.strength), self.shifts.alignment(rows), np.nan)


@dataclass
class _Search:
    """The search for one place's strength, in logarithms.

    `points` are pairs of a log strength and the log ratio of its divergence to that of the words.
    """

    log_strength: float
    most: float
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def found(self) -> bool:
        return bool(self.points) and abs(math.expm1(self.points[-1][1])) <= TOLERANCE

    @property
    def open(self) -> bool:
        return not self.found and math.isfinite(self.log_strength) and self.log_strength <= self.most

    def add(self, ratio: float) -> None:
        """Add the ratio of the divergences at the present strength, and go on to the next strength."""
        self.points.append((self.log_strength, math.log(ratio) if ratio > 0 else -math.inf))
        if not self.found:
            self.log_strength = self._next()

    def _next(self) -> float:
        at, ratio = self.points[-1]
        below = max((point for point in self.points if point[1] < 0), default=None)
        above = min((point for point in self.points if point[1] > 0), default=None)
        if below is not None and above is not None and below[0] < above[0]:
            share = 0.5 if math.isinf(below[1]) else below[1] / (below[1] - above[1])
            return below[0] + (above[0] - below[0]) * min(max(share, 0.1), 0.9)
        # For small strengths, the divergence grows with their square.
        return at - min(max(ratio / 2, -math.log(4)), math.log(4))


def at_equal_damage(
    lens: AudioLens,
    neutral: Sequence[str],
    poles: tuple[Sequence[str], Sequence[str]],
    codes: Int[Tensor, "row codebook frame"],
    places: Sequence[Candidate],
    near: Shifts,
    *,
    batch_size: int,
    words_added: bool,
) -> EqualDamage:
    """Return the shifts of all places at the strengths at which they diverge as far as the words do.

    `near` are the shifts at small strengths, from which the search starts. The other arguments are those of
    `shifts_of`.

    Raises:
        InputError: if the words do not change the predictions.
    """
    target = float(near.words_damage.sum())
    if not target > 0:
        raise InputError("the words of the poles do not change the predictions, so no strength changes them equally.")
    with np.errstate(divide="ignore"):
        first = 0.5 * np.log(2 * target / near.own.sum(1))
    searches = [_Search(float(one), float(one) + math.log(MOST_GROWTH)) for one in first]
    inner, own, damage = (part.copy() for part in (near.inner, near.own, near.damage))
    spent, words_steps = 0, 0
    for _ in range(MOST_ROUNDS):
        left = [at for at, search in enumerate(searches) if search.open]
        if not left:
            break
        strengths = [math.exp(searches[at].log_strength) for at in left]
        found = shifts_of(
            lens, neutral, poles, codes, [places[at] for at in left], batch_size=batch_size, strengths=strengths,
            words_added=words_added,
        )  # fmt: skip
        spent, words_steps = spent + found.row_steps, words_steps + found.words_steps
        inner[left], own[left], damage[left] = found.inner, found.own, found.damage
        for at, total in zip(left, found.damage.sum(1), strict=True):
            searches[at].add(float(total) / target)
    strength = np.array([math.exp(one.points[-1][0]) if one.found else math.nan for one in searches])
    shifts = Shifts(inner, own, damage, near.words, near.words_damage, near.constancy, spent, words_steps)
    return EqualDamage(strength, shifts)
