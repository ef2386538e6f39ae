"""Check arguments (numbers, flags and lists), with the same rules and error messages for every function.

A number can be a Python or numpy number, or an array or tensor with no axes. Booleans are not accepted as numbers. A
list can be any ordered iterable, and is iterated over only once.
"""

import inspect
import math
import operator
from collections.abc import Iterable, Mapping, Set, Sized
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np

from audiolens.arrays import AsArray
from audiolens.errors import AudioLensError, InputError, InputTypeError

MOST = 1_000_000
"""The largest count that is accepted. A loop over more items would take far too long."""
MOST_SEED = 2**32 - 1
MOST_ITEMS = 10_000_000
"""The largest number of items in a list."""
MOST_JOBS = 1_024
"""The largest number of processes. Every process is started, even if there is no work for it."""
MOST_INDICES = 10_000
"""The largest number of items in a list of layers or heads."""
RATES_HZ = (1_000, 768_000)
"""The lowest and highest accepted sample rates. Resampling from other rates could turn one sample into thousands."""
_MOST_BITS = 1_000
_MOST_SHOWN = 120
_UNORDERED = (str, bytes, Mapping, Set, AsArray)


def whole_numbers(values: Iterable[Any]) -> list[int]:
    """Return the whole numbers in a list, an array or a tensor.

    Raises:
        TypeError: if any item is not a whole number, or is a bool, because a mask would be read as indices 0 and 1.
        InputError: if a number is too long to be quoted in a message.
    """
    found = [whole_number(value) for value in values]
    if long := [value for value in found if value.bit_length() > _MOST_BITS]:
        raise InputError(f"{shown(long[0])} was given: expected a smaller number.")
    return found


def whole_number(value: Any) -> int:
    """Return a whole number from Python, numpy or torch as an int.

    Raises:
        TypeError: if the value is not a whole number, or is a bool.
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "torch.bool":
        raise TypeError(f"{shown(value)} is not a number.")
    if getattr(value, "ndim", 0):
        raise TypeError(f"{shown(value)} is not a single number.")
    return operator.index(value)


def real_number(value: Any) -> float:
    """Return a real number from Python, numpy or torch as a float.

    Raises:
        TypeError: if the value is not a real number, or is a bool.
    """
    if getattr(value, "ndim", 1) == 0 and hasattr(value, "item") and not isinstance(value, np.ma.MaskedArray):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{shown(value)} is not a number.")
    try:
        return float(value)
    except OverflowError:
        # The value is a whole number or a fraction that is too large for a float.
        return -math.inf if value < 0 else math.inf


def checked_count(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """Check that a value is a whole number from `least` to `most`, and return it.

    Raises:
        InputError: if the value is out of range or is not a whole number (a bool is rejected).
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
    """Check that a value is a finite number greater than `above`, and return it.

    Raises:
        InputError: if the value is out of range or is not a finite number (a bool is rejected).
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
    """Check that a random seed is valid, and return it.

    Raises:
        InputTypeError: if the seed is not a whole number.
        InputError: if the seed does not fit in 32 bits.
    """
    try:
        number = whole_number(seed)
    except TypeError:
        raise InputTypeError(f"seed {shown(seed)}: expected a whole number.") from None
    # torch seeds its generator with 32 bits, and silently ignores all higher bits.
    if not 0 <= number < 2**32:
        raise InputError(f"seed {shown(seed)}: expected 0 <= seed < 2**32.")
    return number


def checked_flags(**flags: object) -> None:
    """Reject any flag that is neither True nor False, because a word such as "no" would be treated as True.

    Raises:
        InputTypeError: if a flag is neither True nor False; the message names the flag.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise InputTypeError(f"{name}={shown(flag)}: expected True or False.")


def _in_order(values: Any) -> bool:
    return _has_items(values) and not isinstance(values, _UNORDERED)


def listed(name: str, values: Any) -> list[Any]:
    """Return the items of any ordered iterable, which is iterated over only once.

    Raises:
        InputTypeError: if `values` is a single value, text, a mapping, a set or a masked array.
    """
    if not _in_order(values):
        raise InputTypeError(f"{name}={_briefly(values)}: expected a list, in order.")
    refuse_masked(name, values)
    return bounded(name, values)


def bounded(name: str, values: Iterable[Any], most: int = MOST_ITEMS) -> list[Any]:
    """Return the items of an iterable, which can be infinite.

    Raises:
        InputError: if the iterable has more than `most` items.
    """
    if isinstance(values, range) and (values[-1:] and abs(values[-1] - values[0]) // abs(values.step) >= most):
        raise InputError(f"{name}={shown(values)}: expected at most {most:,} items.")
    size = len(values) if isinstance(values, Sized) and not isinstance(values, range) else 0
    if size > most:
        # Check the size before iterating, because iterating over a tensor creates all of its rows.
        raise InputError(f"{name}={_briefly(values)}: expected at most {most:,} items.")
    items = list(islice(values, most + 1))
    if len(items) > most:
        raise InputError(f"{name}={_briefly(values)}: expected at most {most:,} items.")
    return items


def in_order(name: str, values: Any, what: str) -> tuple[Any, ...]:
    """Return the items of an ordered iterable as a tuple; the error message calls the items `what`.

    Raises:
        InputTypeError: for the same reasons as `listed`.
    """
    if not _in_order(values):
        raise InputTypeError(f"{name}: expected a list of {what}, in order, got {type(values).__name__}.")
    return tuple(listed(name, values))


def one_or_listed(name: str, values: Any) -> Any:
    """Return a single value unchanged, or list the items of an ordered iterable, which is iterated over only once."""
    return values if isinstance(values, str) or not _has_items(values) else listed(name, values)


def refuse_masked(name: str, values: Any) -> None:
    """Reject masked arrays, because numpy and torch functions called later would ignore the mask.

    Raises:
        InputTypeError: if any value is masked.
    """
    parts = values if isinstance(values, list | tuple) else [values]
    if any(np.ma.is_masked(part) for part in parts if isinstance(part, np.ma.MaskedArray)):
        raise InputTypeError(
            f"{name} is a masked array, and its mask would be ignored: fill it, or leave out the masked values."
        )


def as_array(name: str, values: Any) -> np.ndarray:
    """Make an array from the items of a list, without checking whether they are masked.

    Raises:
        InputTypeError: if the list contains lists of different lengths, or tensors that numpy cannot read.
    """
    try:
        return np.asarray(values)
    except AudioLensError:
        raise
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(
            f"{name}={_briefly(values)}: its items have different lengths, or contain values that cannot be read."
        ) from None


def numbers_of(name: str, values: Any) -> np.ndarray:
    """Make an array of floats from any array or list of real numbers.

    Raises:
        InputTypeError: if the values are of another kind, such as text, booleans or complex numbers, or are masked.
    """
    refuse_masked(name, values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    array = as_array(name, values)
    other = array.dtype.kind == "O" and any(isinstance(one, str | bool | complex) for one in array.flat)
    if array.dtype.kind in "SUmMcVb" or other:
        raise InputTypeError(f"{name} has dtype {array.dtype}: expected numbers.")
    return array.astype(float)


def _has_items(values: Any) -> bool:
    """Whether a value can be iterated over. An array or tensor with no axes claims to be iterable, but is not."""
    return isinstance(values, Iterable) and bool(getattr(values, "ndim", 1))


def _briefly(values: Any) -> str:
    """Describe a value briefly: by its text or, if the text might be long, by its type."""
    return type(values).__name__ if isinstance(values, Iterable) and not isinstance(values, str) else shown(values)


def shown(value: Any) -> str:
    """Return the text that represents a value in error messages.

    This is its repr, or its type if the repr is long, has several lines or raises an error.
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a whole number of {value.bit_length():,} bits"
    name = type(value).__name__
    try:
        array: Any = value
        if not isinstance(value, type) and hasattr(value, "dtype") and array.ndim:
            return f"{name} of {array.dtype}, shaped {list(array.shape)}"
        if isinstance(value, str | bytes):
            text = repr(value[:_MOST_SHOWN])
            return text if len(value) <= _MOST_SHOWN else f"{text}..."
        if isinstance(value, tuple | list | Set | Mapping) and len(value) > _MOST_SHOWN:
            return name
        text = repr(value)
    except Exception:
        return name
    return name if len(text) > _MOST_SHOWN or "\n" in text else text


def encodes(text: str) -> bool:
    """Return whether text can be encoded as UTF-8. Text that contains half of a surrogate pair cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_function(name: str, value: Any, expected: str, *given: Any, **options: Any) -> Any:
    """Check that a value is a function that takes these arguments, and return it.

    Args:
        expected: what is expected, such as "a function of the activations".

    Raises:
        InputTypeError: if the value is not a function, or takes other arguments.
    """
    if not callable(value):
        raise InputTypeError(f"{name}={shown(value)}: expected {expected}.")
    try:
        signature = inspect.signature(value)
    except Exception:
        # Functions of compiled libraries do not state their arguments.
        return value
    try:
        signature.bind(*given, **options)
    except TypeError as error:
        raise InputTypeError(f"{name}={shown(value)}: expected {expected}, which this is not: {error}.") from None
    return value


def checked_text(name: str, value: Any) -> str:
    """Check that a value is a string, and return it.

    Raises:
        InputTypeError: if the value is not a string, or contains half of a surrogate pair (which cannot be stored in a
            file).
    """
    if not isinstance(value, str) or not encodes(value):
        raise InputTypeError(f"{name}={shown(value)}: expected text.")
    return value
