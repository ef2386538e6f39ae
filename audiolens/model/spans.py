"""Check a time interval in seconds. This module does not import torch, so that measuring sound files starts quickly."""

import math

from audiolens.checks import real_number, shown
from audiolens.errors import InputError, InputTypeError

Real = float | int
Span = tuple[Real, Real]


def checked_span(seconds: object) -> Span:
    """Check a (from, to) pair in seconds, and return it."""
    if not isinstance(seconds, tuple | list) or len(seconds) != 2:
        raise InputTypeError(f"seconds={shown(seconds)}: expected a pair (from, to) in seconds.")
    try:
        start, stop = map(real_number, seconds)
    except TypeError:
        raise InputTypeError(f"seconds={shown(seconds)}: expected a pair (from, to) in seconds.") from None
    if not (math.isfinite(start) and math.isfinite(stop)) or start < 0 or stop <= start:
        raise InputError(f"seconds={shown(seconds)}: expected 0 <= from < to, both finite.")
    return start, stop
