"""Check JSON from a file against an expected shape: the keys of each object, and the type of each value.

A shape is a type (`str`, `bool`, `int`, or `float`, which also accepts whole numbers), a tuple of alternative shapes,
`None` for null, `[shape]` for a list of any length, `[shape, shape]` for a list of two items, `{"key": shape}` for an
object with at least these keys (`"key?"` is optional), or `{str: shape}` for an object with any keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from audiolens.checks import shown
from audiolens.errors import InputError

_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", None: "null"}


def refuse_other(path: str | PathLike[str], value: Any, shape: Any, where: str = "") -> None:
    """Reject a value that does not have the expected shape.

    Raises:
        InputError: if the value does not have the expected shape; the message names the file and the first key that
            differs, and states what is expected there.
    """
    difference = _difference(value, shape, where)
    if difference is not None:
        raise InputError(f"{path} cannot be used: {difference}.")


def tuples(value: Any) -> Any:
    """Return a value from JSON or TOML with its lists converted to tuples."""
    if isinstance(value, dict):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _difference(value: Any, shape: Any, where: str) -> str | None:
    if isinstance(shape, tuple):
        found = [_difference(value, one, where) for one in shape]
        return None if None in found else found[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _unlike(value, "a list", where)
        if len(shape) > 1 and len(value) != len(shape):
            return f"{where or 'it'} has {len(value)} items, expected {len(shape)}"
        shapes = shape if len(shape) > 1 else shape * len(value)
        pairs = enumerate(zip(value, shapes, strict=True))
        return _first(_difference(item, own, f"{where}[{index}]") for index, (item, own) in pairs)
    if isinstance(shape, Mapping):
        return _in_object(value, shape, where)
    return None if _is(value, shape) else _unlike(value, _WORDS[shape], where)


def _in_object(value: Any, shape: Mapping[Any, Any], where: str) -> str | None:
    if not isinstance(value, dict):
        return _unlike(value, "an object", where)
    if str in shape:
        return _first(_difference(item, shape[str], _under(where, key)) for key, item in value.items())
    for name, inner in shape.items():
        key = name.removesuffix("?")
        if key not in value and key == name:
            return f"it lacks {shown(_under(where, key))}"
        if key in value and (difference := _difference(value[key], inner, _under(where, key))):
            return difference
    return None


def _is(value: Any, shape: Any) -> bool:
    if shape is None:
        return value is None
    if shape is float:
        # Some whole numbers are too large for a float.
        return isinstance(value, float) or (_is_whole(value) and abs(value) < 2**1000)
    if shape is int:
        return _is_whole(value) and abs(value) < 2**63
    return isinstance(value, shape)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _first(found: Any) -> str | None:
    return next((difference for difference in found if difference is not None), None)


def _unlike(value: Any, expected: str, where: str) -> str:
    text = repr(value) if not isinstance(value, list | dict) else type(value).__name__
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{where or 'it'} is {text}, expected {expected}"


def _under(where: str, key: str) -> str:
    name = key if len(key) <= 60 else f"{key[:57]}..."
    return f"{where}.{name}" if where else name
