"""The clock: which steps the forward that is running holds, and that they follow from the forward before.

It is the absolute position: every forward starts by reading what the decoder was given, the new columns and the length
already cached. It is therefore the same with and without the key-value cache, and for `generate`, whose first forward
transformers runs twice for MusicGen and once for Melody. Counting calls would be off by one there. Steps are counted
behind the prefix, whose positions are the negative ones.

A clock that stood still would turn every step into step 0 without a word. So nothing is assumed: a decoder that is
given no cache under a known name, or a forward that does not follow from the one before, stops the run.
"""

from importlib.metadata import version
from typing import Any

from audiolens.errors import UnsupportedModelError

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls the key-value cache that the decoder is given: from 5.24 on, and before."""


def read(decoder: Any, prefix: int) -> tuple[int, int]:
    """Inside a run: the first step of the forward that is running, and how many it has.

    A prefix is a part of the forward that finds nothing cached; it counts as steps before step 0.

    Raises:
        UnsupportedModelError: if the decoder is given no cache, present or absent, under exactly one known name.
    """
    _, given = decoder.inputs
    names = [name for name in CACHE_NAMES if name in given]
    if len(names) != 1 or given.get("input_ids") is None:
        raise UnsupportedModelError(
            f"transformers {version('transformers')} gives the decoder {', '.join(sorted(given))}: expected input_ids "
            f"and one of {' and '.join(CACHE_NAMES)}, without which the step that is running is unknown. Install a "
            "release that audiolens supports (docs/versions.md)."
        )
    past, steps = given[names[0]], given["input_ids"].shape[-1]
    cached = 0 if past is None else int(past.get_seq_length())
    return cached - prefix, steps if cached else prefix + steps


class Clock:
    """The clock of one run. `end` is the step after the last one that a forward held."""

    def __init__(self, decoder: Any, prefix: int) -> None:
        self.decoder, self.prefix = decoder, prefix
        self.first: tuple[int, int] | None = None
        self.forwards = 0
        self.end = -prefix

    def tick(self) -> tuple[int, int]:
        """The first step of the forward that is running, and how many it has.

        Raises:
            UnsupportedModelError: if it does not follow from the forward before.
        """
        start, length = read(self.decoder, self.prefix)
        if not self._follows(start, start + length):
            raise UnsupportedModelError(
                f"forward {self.forwards} of this run holds steps {start} to {start + length - 1}, after step "
                f"{self.end - 1}: transformers {version('transformers')} does not generate one step after another, as "
                "the lens expects. Install a release that audiolens supports (docs/versions.md)."
            )
        self.first = self.first or (start, start + length)
        self.forwards += 1
        self.end = start + length
        return start, length

    def _follows(self, start: int, end: int) -> bool:
        if self.first is None:
            return start == -self.prefix < end
        # MusicGen's first forward runs twice; after it each adds a step to what is cached, or holds all again.
        again = self.forwards == 1 and (start, end) == self.first
        return again or (end == self.end + 1 and start in (self.end, -self.prefix))
