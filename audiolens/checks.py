"""Numbers at the door: counts, seeds and amounts, checked once and in the same words everywhere."""

import math
import operator
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from numbers import Real
from typing import Any

from audiolens.errors import InputError, InputTypeError


def whole_numbers(values: Iterable[Any]) -> list[int]:
    """The whole numbers of a list, an array or a tensor.

    Raises:
        TypeError: if there is anything else. That a bool passes for 0 or 1 would turn a mask into the first two places.
    """
    return [whole_number(value) for value in values]


def whole_number(value: Any) -> int:
    """One whole number, Python's, numpy's or torch's.

    Raises:
        TypeError: if it is none, and for a bool.
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "torch.bool":
        raise TypeError(f"{value!r} is no number.")
    return operator.index(value)


def in_order(name: str, values: Any, what: str) -> tuple[Any, ...]:
    """Values in their order, read once, so that a generator will do.

    Raises:
        InputTypeError: for text, for what cannot be iterated, and for a set or a mapping, whose order pairs nothing.
    """
    try:
        if not isinstance(values, str | bytes | AbstractSet | Mapping):
            return tuple(values)
    except TypeError:
        pass
    raise InputTypeError(f"{name}: expected a list of {what}, in order, got {type(values).__name__}.")


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number.

    Raises:
        InputError: if it is none (a truth value is none), or under `least`.
    """
    try:
        number = whole_number(value)
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
