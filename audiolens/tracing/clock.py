"""Determine which steps the current forward pass covers, and check that they continue the previous forward pass.

The clock reads the absolute position from the decoder's inputs: the new columns and the length already cached. The
position is therefore correct with and without the key-value cache. It is also correct in `generate`, where transformers
runs the first forward pass twice for MusicGen and once for Melody, so that counting calls would be off by one. Step 0
comes after the prefix, whose positions are negative.

A clock that failed to advance would silently turn every step into step 0. The run therefore stops if the decoder does
not receive a cache argument under a known name, or if a forward pass does not continue the previous one.
"""

from importlib.metadata import version
from typing import Any

from audiolens.errors import UnsupportedModelError

CACHE_NAMES = ("cache", "past_key_values")
"""The decoder's argument for the key-value cache: the first name since transformers 5.24, the second before that."""


def read(decoder: Any, prefix: int) -> tuple[int, int]:
    """Inside a run, return the first step of the current forward pass and its number of steps.

    A prefix is part of the forward pass that starts with an empty cache, and its positions precede step 0.

    Raises:
        UnsupportedModelError: if the decoder's inputs do not contain the cache (which can be `None`) under exactly one
            known name.
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
    """The clock of one run. `end` is the step after the last step that was covered."""

    def __init__(self, decoder: Any, prefix: int) -> None:
        self.decoder, self.prefix = decoder, prefix
        self.first: tuple[int, int] | None = None
        self.forwards = 0
        self.end = -prefix

    def tick(self) -> tuple[int, int]:
        """Advance to the current forward pass, and return its first step and its number of steps.

        Raises:
            UnsupportedModelError: if the current forward pass does not continue the previous one.
        """
        start, length = read(self.decoder, self.prefix)
        if not self._follows(start, start + length):
            raise UnsupportedModelError(
                f"forward pass {self.forwards} of this run covers steps {start} to {start + length - 1}, after step "
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
        # MusicGen's first forward pass runs twice. Each later pass adds a step to the cache, or covers all steps again.
        again = self.forwards == 1 and (start, end) == self.first
        return again or (end == self.end + 1 and start in (self.end, -self.prefix))
