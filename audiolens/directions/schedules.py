"""Schedules: functions of time in seconds that scale a steering strength over a clip.

Use them as in `steer(..., schedule=linear(0.0, 2.0))`. This module contains common schedules, but any function of the
time in seconds works. Time is measured from the start of the clip and is the same for every row and layer.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from audiolens.checks import checked_amount, listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError

Schedule = Callable[[float], float]


@guarded
def linear(from_seconds: float, to_seconds: float, start: float = 0.0, stop: float = 1.0) -> Schedule:
    """Return a linear ramp from `start` to `stop` between two times, constant before and after."""
    return _ramp(from_seconds, to_seconds, start, stop, lambda share: share)


@guarded
def cosine(from_seconds: float, to_seconds: float, start: float = 0.0, stop: float = 1.0) -> Schedule:
    """Return a ramp like `linear`, but one that eases in and out along half a cosine."""
    return _ramp(from_seconds, to_seconds, start, stop, lambda share: (1 - math.cos(math.pi * share)) / 2)


@guarded
def exponential(half_life_seconds: float, start: float = 1.0, stop: float = 0.0) -> Schedule:
    """Return an exponential decay from `start` at the beginning of the clip towards `stop`."""
    _finite(half_life_seconds=half_life_seconds, start=start, stop=stop)
    if half_life_seconds <= 0:
        raise InputError(f"half_life_seconds={half_life_seconds}: expected more than 0.")
    return lambda seconds: stop + (start - stop) * 0.5 ** (seconds / half_life_seconds)


@guarded
def piecewise(points: Sequence[tuple[float, float]]) -> Schedule:
    """Return a curve through points (seconds, factor): linear between them, and constant before and after.

    Raises:
        InputError: if there is no point, or if the times do not rise from 0 or later.
    """
    pairs = [_pair(point) for point in listed("points", points)]
    times, factors = [time for time, _ in pairs], [factor for _, factor in pairs]
    if not pairs or times[0] < 0 or any(later <= earlier for earlier, later in pairwise(times)):
        raise InputError(f"points={shown(pairs)}: expected at least one point, with times that rise from 0 or later.")
    return lambda seconds: float(np.interp(seconds, times, factors))


def _pair(point: object) -> tuple[float, float]:
    parts = listed("a point", point)
    if len(parts) != 2:
        raise InputTypeError(f"point {shown(point)}: expected a pair (seconds, factor).")
    return checked_amount("seconds", parts[0]), checked_amount("factor", parts[1])


def _ramp(from_seconds: float, to_seconds: float, start: float, stop: float, ease: Schedule) -> Schedule:
    _finite(from_seconds=from_seconds, to_seconds=to_seconds, start=start, stop=stop)
    if not 0 <= from_seconds < to_seconds:
        raise InputError(f"a ramp from {from_seconds} to {to_seconds} seconds: expected 0 <= from < to.")

    def factor(seconds: float) -> float:
        share = min(max((seconds - from_seconds) / (to_seconds - from_seconds), 0.0), 1.0)
        return start + (stop - start) * ease(share)

    return factor


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(f"{name}={value}: expected a finite number.")
