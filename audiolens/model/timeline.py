"""Convert between steps, frames and seconds, and apply and undo the codebook delay pattern.

Step s reads delayed column s (column 0 is the start token) and predicts column s + 1, which contains frame s of
codebook 0 and frame s - k of a codebook delayed by k. A clip of F frames therefore takes F + (longest delay) steps. The
steps after step F - 1 are the tail, and only complete the delayed codebooks. A stereo model delays its codebooks in
pairs. If the conditioning is a prefix in the decoder's own sequence, its positions are negative steps that end at -1.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from audiolens.checks import MOST, real_number, shown, whole_number
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.model.spans import Real as Real
from audiolens.model.spans import Span, checked_span

if TYPE_CHECKING:
    from audiolens.model.config import LensConfig


@guarded
@dataclass(frozen=True)
class Timeline:
    """The steps of one clip.

    `frames` is the number of codec frames, `frame_rate` is in frames per second, `delays` are the codebooks' delays in
    steps, and `prefix` is the number of positions before step 0 in the row with the longest prefix.
    """

    frames: int
    frame_rate: float
    delays: tuple[int, ...]
    prefix: int = 0

    @property
    def steps(self) -> int:
        """The number of steps, including the tail."""
        return self.frames + max(self.delays)

    @property
    def last(self) -> int:
        """The step that predicts the last frame of codebook 0."""
        return self.frames - 1

    @property
    def seconds(self) -> float:
        return self.frames / self.frame_rate

    def select(self, seconds: Span | None, prefix: bool = False) -> tuple[int, int]:
        """Return the steps (from, to) of a time interval in seconds; `None` means every step, including the tail.

        With `prefix` the steps begin at the first position of the longest prefix, which is a negative step.

        Raises:
            InputError: if the interval is empty, not finite, or outside the clip, or if `prefix` is set and the
                interval does not start at 0.
        """
        first, end = self._steps(seconds)
        if prefix and first:
            raise InputError(
                f"seconds={seconds} with prefix=True: the prefix ends where the clip begins, so the span must start "
                "at 0. A schedule can be 0 where nothing should change."
            )
        return -self.prefix if prefix else first, end

    def _steps(self, seconds: Span | None) -> tuple[int, int]:
        if seconds is None:
            return 0, self.steps
        start, stop = checked_span(seconds)
        first, end = round(start * self.frame_rate), round(stop * self.frame_rate)
        if end > self.frames:
            raise InputError(
                f"seconds={seconds} ends after the clip, which lasts {self.seconds:g} s: give a span inside it."
            )
        if first >= end:
            raise InputError(f"seconds={seconds} selects no step: one step lasts {1 / self.frame_rate:g} s here.")
        return first, end


def longest_seconds(config: "LensConfig", prefix: int = 0) -> float:
    """Return the length in seconds of the longest clip that the model's positions allow after a prefix."""
    return (config.max_steps - prefix - max(config.delays)) / config.frame_rate


def clip_timeline(seconds: object, config: "LensConfig", prefix: int = 0, name: str = "seconds") -> Timeline:
    """Return the timeline of a clip to be generated, after a prefix of at most `prefix` positions.

    `name` is the name of the argument `seconds` in error messages.

    Raises:
        InputTypeError, InputError: if `seconds` is not a number, or is not a length that the model can generate.
    """
    try:
        length = real_number(seconds)
    except TypeError:
        raise InputTypeError(f"{name}={shown(seconds)}: expected a number.") from None
    tail = max(config.delays)
    longest = longest_seconds(config, prefix)
    # For clips with fewer frames, transformers silently omits the delay.
    least = max(1, tail)
    shortest = least / config.frame_rate
    if not (shortest <= length + 1e-9 and length <= longest + 1e-9):
        longer = " lens.generate makes longer ones with window=." if longest < length < math.inf else ""
        raise InputError(f"{name}={seconds}: this model makes clips of {shortest:g} to {longest:g} seconds.{longer}")
    return Timeline(max(least, round(length * config.frame_rate)), config.frame_rate, config.delays, prefix)


def codes_timeline(codes: Tensor | None, config: "LensConfig", prefix: int = 0) -> Timeline:
    """Return the timeline of codes after a prefix of `prefix` positions. Without codes, the only step reads the start
    token."""
    if codes is None:
        return Timeline(1, config.frame_rate, (0,), prefix)
    timeline = Timeline(codes.shape[-1], config.frame_rate, config.delays, prefix)
    if prefix + timeline.steps > config.max_steps:
        raise InputError(
            f"codes of {codes.shape[-1]} frames: this model reads at most {config.max_steps - prefix} steps."
        )
    return timeline


def checked_frames(frames: object) -> int:
    """Check a number of codec frames, and return it.

    Raises:
        InputTypeError, InputError: if `frames` is not a whole number, is less than 1, or exceeds the limit for a clip.
    """
    try:
        count = whole_number(frames)
    except TypeError:
        raise InputTypeError(f"frames={shown(frames)}: expected a whole number.") from None
    if count < 1:
        raise InputError(f"frames={shown(count)}: a clip has at least one frame.")
    if count > MOST:
        raise InputError(f"frames={shown(count)}: a clip has at most {MOST:,} frames.")
    return count


def one_span(seconds: Span | None, span: Span | None) -> Span | None:
    """Return the time interval (from, to) in seconds, which can be given as `seconds` or as `span`.

    Raises:
        InputError: if both were given.
    """
    if seconds is not None and span is not None:
        raise InputError(
            f"seconds={shown(seconds)} and span={shown(span)} were both given: they are the same, so give one."
        )
    return span if seconds is None else seconds


def delays_of(n_codebooks: int, channels: int) -> tuple[int, ...]:
    """Each codebook's delay in steps, such as 0 1 2 3 for mono and 0 0 1 1 2 2 3 3 for stereo with eight codebooks."""
    return tuple(codebook // channels for codebook in range(n_codebooks))


def delay(
    codes: Int[Tensor, "row codebook frame"], delays: tuple[int, ...], pad: int
) -> Int[Tensor, "row codebook column"]:
    """Return the decoder's columns: the start token, then each codebook shifted by its delay and padded with `pad`."""
    rows, codebooks, frames = codes.shape
    columns = codes.new_full((rows, codebooks, 1 + frames + max(delays)), pad)
    for codebook, shift in enumerate(delays):
        columns[:, codebook, 1 + shift : 1 + shift + frames] = codes[:, codebook]
    return columns


def undelay(
    columns: Int[Tensor, "row codebook column"], delays: tuple[int, ...], frames: int
) -> Int[Tensor, "row codebook frame"]:
    """Return the codes in delayed columns. This is the inverse of `delay`."""
    return torch.stack(
        [columns[:, codebook, 1 + shift : 1 + shift + frames] for codebook, shift in enumerate(delays)], dim=1
    )
