"""Numbers at the door: counts, seeds and amounts, checked once and in the same words everywhere."""

import math
from numbers import Real
from operator import index
from typing import Any

from audiolens.errors import InputError


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number.

    Raises:
        InputError: if it is none (a truth value is none), or under `least`.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name}={value!r}: expected a whole number of at least {least}.")
    return number


def checked_amount(name: str, value: Any, above: float = -math.inf) -> float:
    """A finite number.

    Raises:
        InputError: if it is none (a truth value is none), or not above `above`.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not math.isfinite(number) or not number > above:
        wanted = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
        raise InputError(f"{name}={value!r}: expected {wanted}.")
    return number
