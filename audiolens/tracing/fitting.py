"""Divide a batch that does not fit in the memory of its device in half, and run the halves instead.

Each row has its own random stream, so its clip does not depend on the other rows of its batch. Kernels of another shape
round differently in the last bits, as they do for every other batch size, so that a code can flip where two codes are
almost equally likely.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from audiolens.errors import AudioLensWarning, TooLittleMemoryError
from audiolens.model.memory import Need, freed, memory_text, ran_out
from audiolens.model.tokens import callers_level

T = TypeVar("T")


class Fitting:
    """The number of rows that fit in memory at once, found by trial.

    Args:
        device: the device of the run.
        rows: what a row is, such as "rows of 30 s", for messages.
        need: a function that estimates the memory of one row, apart from recordings.
        whole: why a batch cannot be divided, and what to do instead, if that is so.
        recordings: the argument that keeps recordings out of this memory, if anything is recorded.

    Attributes:
        at_once: the largest number of rows that run at once, or `None` while every batch has fitted.
    """

    def __init__(
        self,
        device: torch.device,
        rows: str,
        need: Callable[[], Need],
        whole: str | None = None,
        recordings: str | None = None,
    ) -> None:
        self.device, self.rows, self.need, self.whole, self.recordings = device, rows, need, whole, recordings
        self.at_once: int | None = None

    def run(
        self, count: int, call: Callable[[slice], T], undo: Callable[[slice], None] | None = None
    ) -> Iterator[tuple[slice, T]]:
        """Call a function for the rows of a batch, in as few parts as fit, and yield each part with its result.

        Args:
            count: the number of rows of the batch.
            undo: a function that removes what an unfinished call has recorded.

        Raises:
            TooLittleMemoryError: if a single row, or a batch that cannot be divided, does not fit.
        """
        start = 0
        while start < count:
            rows = slice(start, min(count, start + (self.at_once or count)))
            try:
                done = call(rows)
            except Exception as error:
                if not ran_out(error):
                    raise
            else:
                yield rows, done
                start = rows.stop
                continue
            # The handler has ended, so the exception no longer keeps the tensors of the run.
            if undo is not None:
                undo(rows)
            freed(self.device)
            self._halve(rows.stop - rows.start)

    def _halve(self, size: int) -> None:
        there = f"in the free memory of {memory_text(self.device)}"
        if size == 1:
            raise TooLittleMemoryError(
                f"one of the {self.rows} does not fit {there}: it needs {self._needed}. Use a shorter clip, a narrower "
                "dtype, guidance_scale=1, or another device."
            )
        if self.whole is not None:
            raise TooLittleMemoryError(
                f"{size} {self.rows} do not fit {there} (one needs {self._needed}) and cannot be divided: {self.whole}."
            )
        self.at_once = -(-size // 2)
        warnings.warn(divided(size, self.at_once, self.rows, str(self.device)), stacklevel=callers_level())

    @property
    def _needed(self) -> str:
        more = "" if self.recordings is None else f", and more for recordings ({self.recordings} keeps them elsewhere)"
        return f"{self.need()}{more}"


def divided(size: int, at_once: int, rows: str, device: str) -> AudioLensWarning:
    """Return the warning that a batch was divided."""
    return AudioLensWarning(
        f"{size} {rows} do not fit in the free memory of {device}, so at most {at_once} run at once from here on. "
        "Seeds and noise are the same, but sums can round differently in batches of another size."
    )
