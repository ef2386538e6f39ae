"""Divide a batch that does not fit in the memory of its device in half, and run the halves instead.

Each row has its own random stream, so its clip does not depend on the other rows of its batch. Kernels of another shape
round differently in the last bits, as they do for every other batch size, so that a code can flip where two codes are
almost equally likely.

A loop over batches divides its own (`reading_fit`), because what it does with the activations also takes memory. The
runs inside it then leave dividing to the loop, until it runs one row at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch

from audiolens.errors import AudioLensWarning, TooLittleMemoryError
from audiolens.model import text
from audiolens.model.memory import Need, freed, memory_text, ran_out
from audiolens.model.tokens import callers_level
from audiolens.model.traced_model import TracedModel

T = TypeVar("T")
_SHOWN = 200
"""The number of characters of the device's own message that an error repeats."""
_AROUND: ContextVar[Fitting | None] = ContextVar("around", default=None)
"""The batch inside which this code runs."""


class Fitting:
    """The number of rows that fit in memory at once, found by trial.

    Args:
        device: the device of the run.
        rows: what a row is, such as "rows of 30 s", for messages.
        need: a function that estimates the memory of one row, apart from recordings, or says what is known of it.
        whole: why a batch cannot be divided, and what to do instead, if that is so.
        recordings: the argument that keeps recordings out of this memory, if anything is recorded.
        at_once: the largest number of rows to begin with; `None` begins with all.
        instead: what needs less memory, for messages.

    Attributes:
        at_once: the largest number of rows that run at once, or `None` if there is no limit.
    """

    def __init__(
        self,
        device: torch.device,
        rows: str,
        need: Callable[[], Need | str],
        whole: str | None = None,
        recordings: str | None = None,
        at_once: int | None = None,
        instead: str = "a shorter clip, a narrower dtype, guidance_scale=1",
    ) -> None:
        self.device, self.rows, self.need, self.whole, self.recordings = device, rows, need, whole, recordings
        self.at_once, self.instead = at_once, instead
        self._size = 0
        self._around: Fitting | None = None
        self._inside: dict[str, int] = {}

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
        self._around = around = _AROUND.get()
        if around is not None and self.rows in around._inside:
            self.at_once = min(around._inside[self.rows], self.at_once or count)
        start = 0
        while start < count:
            rows = slice(start, min(count, start + (self.at_once or count)))
            made: list[T] = []
            try:
                made.append(self._called(call, rows))
            except Exception as error:
                if not ran_out(error) or self._leaves(rows.stop - rows.start):
                    raise
                told = _told(error)
            else:
                # No reference is kept here, so that the next part does not need memory for this one as well.
                yield rows, made.pop()
                start = rows.stop
                continue
            # The handler has ended, so the exception no longer keeps the tensors of the run.
            if undo is not None:
                undo(rows)
            freed(self.device)
            self._halve(rows.stop - rows.start, told)

    def each(
        self, batches: Iterable[Sequence[Any]], call: Callable[[Any], T], undo: Callable[[slice], None] | None = None
    ) -> Iterator[tuple[Any, T]]:
        """Call a function for batches of row numbers, each in as few parts as fit, and yield each part with its result.

        A part has the type of its batch (a list, a range or an array).

        Raises:
            TooLittleMemoryError: as `run` does.
        """
        for batch in batches:
            for rows, done in self.run(len(batch), lambda rows, batch=batch: call(batch[rows]), undo):
                yield batch[rows], done

    def _called(self, call: Callable[[slice], T], rows: slice) -> T:
        token, self._size = _AROUND.set(self), rows.stop - rows.start
        try:
            return call(rows)
        finally:
            _AROUND.reset(token)

    def _leaves(self, size: int) -> bool:
        """Whether a batch around this one is divided instead, or says what it needs if no row fits."""
        around = self._around
        return around is not None and (around._divisible or self.whole is not None or size == 1)

    @property
    def _divisible(self) -> bool:
        """Whether this batch, or one around it, can still be divided."""
        mine = self.whole is None and self._size > 1
        return mine or (self._around is not None and self._around._divisible)

    def _halve(self, size: int, told: str) -> None:
        there = f"in the free memory of {memory_text(self.device)}"
        if size == 1:
            raise TooLittleMemoryError(
                f"one of the {self.rows} does not fit {there}: it needs {self._needed}. Use {self.instead}, or another "
                f"device. ({told})"
            )
        if self.whole is not None:
            raise TooLittleMemoryError(
                f"{size} {self.rows} do not fit {there} (one needs {self._needed}) and cannot be divided: {self.whole}."
                f" ({told})"
            )
        self.at_once = -(-size // 2)
        if self._around is not None:
            # The next batch of the loop begins with what fitted in this one.
            self._around._inside[self.rows] = self.at_once
        warnings.warn(divided(size, self.at_once, self.rows, str(self.device)), stacklevel=callers_level())

    @property
    def _needed(self) -> str:
        more = "" if self.recordings is None else f", and more for recordings ({self.recordings} keeps them elsewhere)"
        return f"{self.need()}{more}"


def reading_fit(
    traced: TracedModel,
    prompts: Sequence[text.Prompt],
    frames: int,
    batch_size: int | None = None,
    *,
    rows: str = "rows",
    branches: int = 1,
    kept_blocks: int = 1,
    more: Callable[[], float] = lambda: 0.0,
) -> Fitting:
    """Return what divides the batches of a loop that reads codes under prompts.

    Args:
        frames: the length of the codes; 1 if only the start token is read.
        batch_size: the largest batch.
        rows: what a row is, for messages.
        kept_blocks: the number of blocks whose activations are kept at once, such as all of them for gradients.
        more: the bytes that the loop itself needs for a row.
    """
    config, model = traced.config, traced.model

    def need() -> Need:
        longest = max(text.lengths(prompts, traced.tokenizer, text.token_limit(model, traced.tokenizer)))
        positions = config.prefix(longest) + frames + max(config.delays)
        found = Need.of(
            model, config, positions=positions, at_once=positions, branches=branches, tokens=longest,
            kept_blocks=kept_blocks,
        )  # fmt: skip
        return found.plus(more())

    return Fitting(
        traced.device,
        f"{rows} of {frames / config.frame_rate:g} s",
        need,
        at_once=batch_size,
        instead="shorter clips, fewer sites or layers, a narrower dtype",
    )


def sound_fit(traced: TracedModel, seconds: float, doing: str, batch_size: int | None = None) -> Fitting:
    """Return what divides clips of some seconds that the codec decodes or encodes (`doing`, for messages)."""
    need = partial(
        Need.of, traced.model, traced.config, positions=0, samples=round(seconds * traced.config.sample_rate)
    )
    return Fitting(traced.device, f"clips of {seconds:g} s being {doing}", need, at_once=batch_size)


def _told(error: Exception) -> str:
    """Return what an exception says. nnsight puts the traceback of the model in front of it."""
    lines = str(error).strip().splitlines()
    message = lines[-1].strip() if lines else type(error).__name__
    return message if len(message) <= _SHOWN else f"{message[:_SHOWN].rpartition(' ')[0] or message[:_SHOWN]} …"


def divided(size: int, at_once: int, rows: str, device: str) -> AudioLensWarning:
    """Return the warning that a batch was divided."""
    return AudioLensWarning(
        f"{size} {rows} do not fit in the free memory of {device}, so at most {at_once} run at once from here on. "
        "Seeds and noise are the same, but sums can round differently in batches of another size."
    )
