"""Arguments at the door: numbers, flags and lists, checked once and in the same words everywhere.

A number may be Python's, numpy's, or an array or tensor without axes; booleans are not accepted as numbers. What is
given as a list may be any iterable with an order, and is read once.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Set, Sized
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np

from audiolens.arrays import AsArray
from audiolens.errors import InputError, InputTypeError

MOST = 1_000_000
"""Of what is counted: a loop or a list of more would not end."""
MOST_SEED = 2**32 - 1
MOST_ITEMS = 10_000_000
"""Of a list."""
MOST_JOBS = 1_024
"""Processes: each is started, whether there is work for it or not."""
MOST_PLACES = 10_000
"""Of a list of layers or heads."""
RATES_HZ = (1_000, 768_000)
"""Sample rates that sound has; resampling from others would make thousands of samples of one."""
_MOST_BITS = 1_000
_MOST_SHOWN = 120
_UNORDERED = (str, bytes, Mapping, Set, AsArray)


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
        raise TypeError(f"{shown(value)} is no number.")
    if getattr(value, "ndim", 0):
        raise TypeError(f"{shown(value)} is no single number.")
    return operator.index(value)


def real_number(value: Any) -> float:
    """One real number, Python's, numpy's or torch's.

    Raises:
        TypeError: if it is none, and for a bool.
    """
    if getattr(value, "ndim", 1) == 0 and hasattr(value, "item") and not isinstance(value, np.ma.MaskedArray):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{shown(value)} is no number.")
    try:
        return float(value)
    except OverflowError:
        # Too large for a float: a whole number, or a fraction.
        return -math.inf if value < 0 else math.inf


def checked_count(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """A whole number.

    Raises:
        InputError: if it is none (a truth value is none), under `least`, or over `most`.
    """
    try:
        number = whole_number(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name}={shown(value)}: expected a whole number of at least {least}.")
    if number > most:
        raise InputError(f"{name}={shown(value)}: expected a whole number of at most {most:,}.")
    return number


def checked_amount(name: str, value: Any, above: float = -math.inf) -> float:
    """A finite number.

    Raises:
        InputError: if it is none (a truth value is none), or not above `above`.
    """
    try:
        number = real_number(value)
    except TypeError:
        number = math.nan
    if not math.isfinite(number) or not number > above:
        wanted = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
        raise InputError(f"{name}={shown(value)}: expected {wanted}.")
    return number


def checked_seed(seed: Any) -> int:
    """One seed.

    Raises:
        InputTypeError, InputError: if it is no whole number, or not one of 32 bits.
    """
    try:
        number = whole_number(seed)
    except TypeError:
        raise InputTypeError(f"seed {shown(seed)}: expected a whole number.") from None
    # torch seeds its generator with 32 bits, and takes the rest without a word.
    if not 0 <= number < 2**32:
        raise InputError(f"seed {shown(seed)}: expected 0 <= seed < 2**32.")
    return number


def checked_flags(**flags: object) -> None:
    """Refuse what is neither True nor False: a word such as "no" would count as True.

    Raises:
        InputTypeError: naming the flag.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise InputTypeError(f"{name}={shown(flag)}: expected True or False.")


def _in_order(values: Any) -> bool:
    return _has_items(values) and not isinstance(values, _UNORDERED)


def listed(name: str, values: Any) -> list[Any]:
    """The items of any iterable with an order, read once.

    Raises:
        InputTypeError: for one value, text, a mapping or a set, whose items have no order, or a masked array.
    """
    if not _in_order(values):
        raise InputTypeError(f"{name}={_told(values)}: expected a list, in order.")
    refuse_masked(name, values)
    return bounded(name, values)


def bounded(name: str, values: Iterable[Any], most: int = MOST_ITEMS) -> list[Any]:
    """The items of an iterable, which may be without end.

    Raises:
        InputError: if there are more than `most`.
    """
    if isinstance(values, range) and (values[-1:] and abs(values[-1] - values[0]) // abs(values.step) >= most):
        raise InputError(f"{name}={shown(values)}: expected at most {most:,} items.")
    size = len(values) if isinstance(values, Sized) and not isinstance(values, range) else 0
    if size > most:
        # Of a tensor, iterating makes every row first.
        raise InputError(f"{name}={_told(values)}: expected at most {most:,} items.")
    items = list(islice(values, most + 1))
    if len(items) > most:
        raise InputError(f"{name}={_told(values)}: expected at most {most:,} items.")
    return items


def in_order(name: str, values: Any, what: str) -> tuple[Any, ...]:
    """As `listed`; `what` says of what in the message.

    Raises:
        InputTypeError: as `listed` does.
    """
    if not _in_order(values):
        raise InputTypeError(f"{name}: expected a list of {what}, in order, got {type(values).__name__}.")
    return tuple(listed(name, values))


def one_or_listed(name: str, values: Any) -> Any:
    """A value without items as it is, and the items of any other as a list, read once."""
    return values if isinstance(values, str) or not _has_items(values) else listed(name, values)


def refuse_masked(name: str, values: Any) -> None:
    """Refuse masked arrays: the code below ignores masks.

    Raises:
        InputTypeError: if any value is masked.
    """
    parts = values if isinstance(values, list | tuple) else [values]
    if any(np.ma.is_masked(part) for part in parts if isinstance(part, np.ma.MaskedArray)):
        raise InputTypeError(f"{name}: a masked array, whose mask would be ignored. Fill it, or leave those rows out.")


def numbers_of(name: str, values: Any) -> np.ndarray:
    """An array of numbers.

    Raises:
        InputTypeError: for anything else, text, truth values, complex numbers and masked arrays among it.
    """
    refuse_masked(name, values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    array = np.asarray(values)
    other = array.dtype.kind == "O" and any(isinstance(one, str | bool | complex) for one in array.flat)
    if array.dtype.kind in "SUmMcVb" or other:
        raise InputTypeError(f"{name} of {array.dtype}: expected numbers.")
    return array.astype(float)


def _has_items(values: Any) -> bool:
    """Whether it can be iterated; an array or a tensor without axes says so of itself, and cannot."""
    return isinstance(values, Iterable) and bool(getattr(values, "ndim", 1))


def _told(values: Any) -> str:
    """What was given, in few words: itself, or its type where it may be long."""
    return type(values).__name__ if isinstance(values, Iterable) and not isinstance(values, str) else shown(values)


def shown(value: Any) -> str:
    """What was given, as it can stand in a message: itself, or its type where that would be long or cannot be said."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a whole number of {value.bit_length():,} bits"
    name = type(value).__name__
    try:
        array: Any = value
        if not isinstance(value, type) and hasattr(value, "dtype") and array.ndim:
            return f"{name} of {array.dtype}, shaped {list(array.shape)}"
        if isinstance(value, str | bytes):
            told = repr(value[:_MOST_SHOWN])
            return told if len(value) <= _MOST_SHOWN else f"{told}..."
        if isinstance(value, tuple | list | Set | Mapping) and len(value) > _MOST_SHOWN:
            return name
        told = repr(value)
    except Exception:
        return name
    return name if len(told) > _MOST_SHOWN or "\n" in told else told


def checked_text(name: str, value: Any) -> str:
    """A text.

    Raises:
        InputTypeError: for anything else.
    """
    if not isinstance(value, str):
        raise InputTypeError(f"{name}={shown(value)}: expected text.")
    return value
