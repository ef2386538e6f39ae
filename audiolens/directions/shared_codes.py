"""The clips of neutral prompts over which both poles are read with `codes="shared"`.

A pole that is read while it plays its own music also carries what that music happens to be: its instruments, its decay,
its loudness. Over the same clips, the text is the only difference between the poles. Every clip is read equally often
in both poles, and every prompt equally often in its pole, so that a part of the activations that depends on the clip
alone cancels exactly, also with poles of different sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from audiolens.checks import in_order
from audiolens.errors import InputError

FEWEST_CLIPS = 16
"""With poles of different sizes, the fewest clips to read over, if the larger pole has as many prompts."""


@dataclass(frozen=True)
class SharedClips:
    """The clips to play, and which of them each prompt is read over.

    Attributes:
        neutral: the neutral prompts, played in cyclic order.
        count: the number of clips.
        each: how many clips each prompt of the positive and of the negative pole is read over: 1 for equal poles.
    """

    neutral: tuple[str | None, ...]
    count: int
    each: tuple[int, int]

    @classmethod
    def of(cls, neutral: Sequence[str | None], sizes: tuple[int, int]) -> "SharedClips":
        """Choose as many clips as there are pairs of prompts or, for unequal poles, as need the fewest readings."""
        fewest = min(FEWEST_CLIPS, max(sizes))
        count = min(
            range(max(sizes), fewest - 1, -1), key=lambda count: sum(size * _each(size, count) for size in sizes)
        )
        return cls(tuple(neutral), count, (_each(sizes[0], count), _each(sizes[1], count)))

    @property
    def prompts(self) -> list[str | None]:
        """The neutral prompt of every clip."""
        return [self.neutral[clip % len(self.neutral)] for clip in range(self.count)]

    def read_by(self, pole: int, place: int) -> list[int]:
        """Return the clips that prompt `place` of a pole (0 positive, 1 negative) is read over."""
        first = place * self.each[pole]
        return [clip % self.count for clip in range(first, first + self.each[pole])]


def _each(size: int, count: int) -> int:
    """Return the fewest clips per prompt with which `size` prompts read every one of `count` clips equally often."""
    return count // gcd(size, count)


def checked_neutral(neutral: Any) -> tuple[str | None, ...]:
    """Return the neutral prompts as a tuple.

    Raises:
        InputError: if there are none.
    """
    listed = () if neutral is None else in_order("neutral", neutral, "prompts")
    if not listed:
        raise InputError(
            "codes='shared' reads both poles over the clips of neutral prompts, and none were given: give "
            "neutral=sets.development, or codes='own' to read each pole over its own clips."
        )
    return listed
