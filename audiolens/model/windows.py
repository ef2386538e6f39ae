"""Cut a clip that is longer than a model's positions into windows, each of which continues the end of the one before.

All times are frames of the whole clip. A window of `frames` frames begins at frame `first`. Its first `given` frames
are already known, and the model reads them again, because the positions of a window begin at 0. Step s of a window is
step `first` + s of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from audiolens.checks import checked_amount, shown
from audiolens.errors import InputError
from audiolens.model.timeline import Timeline, clip_timeline

if TYPE_CHECKING:
    from audiolens.model.config import LensConfig

OVERLAP = 0.4
"""The share of a window that continues the previous one, if no overlap is given."""
_MOST_FRAMES = 1_000_000


@dataclass(frozen=True)
class Window:
    """A part of a clip that is generated at once.

    Attributes:
        first: the frame of the clip at which the window begins.
        timeline: the steps of the window.
        given: the number of frames at its beginning that are already known.
        last: whether the clip ends with this window.
    """

    first: int
    timeline: Timeline
    given: int = 0
    last: bool = True

    @property
    def end(self) -> int:
        """The frame of the clip after the window."""
        return self.first + self.timeline.frames

    @property
    def drawn(self) -> tuple[int | None, int | None]:
        """The steps (from, to) of the clip that no other window draws; `None` means the beginning or end of the clip.

        The last steps of a window complete its delayed codebooks. They coincide with the first steps of the next
        window, and count as steps of that one.
        """
        return self.first + self.given if self.first else None, None if self.last else self.end


def begun(windows: tuple[Window, ...], frames: int) -> tuple[Window, ...]:
    """Return the windows of a clip whose first frames are given, as an audio prompt is.

    Raises:
        InputError: if the given frames fill the first window.
    """
    first = windows[0]
    if frames >= first.timeline.frames:
        raise InputError(
            f"audio_prompt lasts {frames / first.timeline.frame_rate:g} s, as long as the first window of "
            f"{first.timeline.seconds:g} s: shorten the prompt, or give a longer window."
        )
    return (replace(first, given=frames), *windows[1:])


def clip_windows(
    seconds: Any, window: Any, overlap: Any, config: LensConfig, prefix: int = 0
) -> tuple[Timeline, tuple[Window, ...]]:
    """Return the timeline of a clip, and its windows. Without `window`, the whole clip is one window.

    Args:
        seconds, window, overlap: lengths in seconds of the clip, of a window, and of what a window reads of the
            previous one (default: two fifths of a window).

    Raises:
        InputTypeError, InputError: if a length is not a number, if the model cannot generate a clip as long as a
            window, or if the overlap is too short or as long as a window.
    """
    if window is None:
        if overlap is not None:
            raise InputError(f"overlap={shown(overlap)} needs window=, the length of the windows that overlap.")
        whole = clip_timeline(seconds, config, prefix)
        return whole, (Window(0, whole),)
    longest = clip_timeline(window, config, prefix, name="window")
    length = checked_amount("seconds", seconds, above=0)
    frames, rate, tail = round(length * config.frame_rate), config.frame_rate, max(1, max(config.delays))
    if frames <= longest.frames:
        whole = clip_timeline(seconds, config, prefix)
        return whole, (Window(0, whole),)
    if frames > _MOST_FRAMES:
        raise InputError(f"seconds={seconds}: expected at most {_MOST_FRAMES / rate:g} s.")
    asked = OVERLAP * longest.seconds if overlap is None else checked_amount("overlap", overlap, above=0)
    shared = round(asked * rate)
    if not tail <= shared < longest.frames:
        raise InputError(
            f"overlap={shown(overlap)}: expected {tail / rate:g} to {(longest.frames - 1) / rate:g} seconds with "
            f"window={shown(window)}."
        )
    found, first = [Window(0, longest, last=False)], 0
    while not found[-1].last:
        first += longest.frames - shared
        mine = min(longest.frames, frames - first)
        found.append(Window(first, replace(longest, frames=mine), shared, last=first + mine == frames))
    return replace(longest, frames=frames), tuple(found)
