"""The clips of neutral prompts on which the model runs for both poles with `codes="shared"`.

If activations are read while the model generates music for each prompt, a pole's mean also reflects incidental
properties of that music, such as instruments, decay and loudness. If the model instead runs on the same clips for both
poles, the text is the only difference between them. Every clip is used equally often for both poles, and every prompt
equally often within its pole. Any component of the activations that depends on the clip alone therefore cancels
exactly, even if the poles differ in size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from audiolens.checks import in_order
from audiolens.errors import InputError

FEWEST_CLIPS = 16
"""The minimum number of clips for poles of different sizes, unless the larger pole has fewer prompts than this."""


@dataclass(frozen=True)
class SharedClips:
    """The clips that both poles share, and the clips on which the model runs for each prompt.

    Attributes:
        neutral: the neutral prompts, from which clips are generated in cyclic order.
        count: the number of clips.
        each: the number of clips per prompt, for the positive and the negative pole; 1 for poles of equal size.
    """

    neutral: tuple[str | None, ...]
    count: int
    each: tuple[int, int]

    @classmethod
    def of(cls, neutral: Sequence[str | None], sizes: tuple[int, int]) -> "SharedClips":
        """Choose one clip per pair of prompts.

        For unequal poles, choose the number of clips that needs the fewest readings.
        """
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
        """Return the clips on which the model runs for the prompt at index `place` of pole 0 (positive) or 1."""
        first = place * self.each[pole]
        return [clip % self.count for clip in range(first, first + self.each[pole])]


def _each(size: int, count: int) -> int:
    """Return the smallest number of clips per prompt such that `size` prompts cover `count` clips equally."""
    return count // gcd(size, count)


def checked_neutral(neutral: Any) -> tuple[str | None, ...]:
    """Return the neutral prompts as a tuple.

    Raises:
        InputError: if there are no neutral prompts.
    """
    listed = () if neutral is None else in_order("neutral", neutral, "prompts")
    if not listed:
        raise InputError(
            "codes='shared' reads both poles on the clips of neutral prompts, but no neutral prompts were given: give "
            "neutral=sets.development, or codes='own' to read each pole on its own clips."
        )
    return listed
