"""Check whether a value fits a type annotation, and describe what the annotation expects.

Numbers from any library are accepted as numbers, but booleans are not. Any ordered iterable is accepted as a sequence.
An annotation that states no type, such as `Any`, accepts every value.
"""

import builtins
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from audiolens.arrays import AsArray
from audiolens.checks import encodes, real_number, shown, whole_number
from audiolens.errors import shortened

_LOOKED_AT = 200
"""The number of items of a list that are checked."""
_LARGEST = 2**63 - 1
_LARGEST_REAL = 1e30
_PUBLIC = {
    "AudioLens": "audiolens.lens",
    "Generation": "audiolens.tracing.generation",
    "PromptSet": "audiolens.prompts",
    "Clap": "audiolens.measure.clap",
    "Study": "analysis.study",
    "SweepResult": "analysis.sweep",
    "pd": "pandas",
}
"""Names in annotations that modules import only for type checkers."""
_PROTOCOLS = {"Opened": "AudioLens", "HasModel": "AudioLens", "Generated": "Generation", "Array": "an array"}
"""What users pass for each of audiolens's protocols, all of which are `runtime_checkable`."""


class _Names(Mapping[str, Any]):
    """Looks up the names in an annotation in its module, builtins and `_PUBLIC`. Unknown names become `Any`."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        self.module = module

    def __getitem__(self, name: str) -> Any:
        if name in self.module:
            return self.module[name]
        if name in _PUBLIC:
            from importlib import import_module

            found = import_module(_PUBLIC[name])
            return found if name == "pd" else getattr(found, name)
        return getattr(builtins, name, Any)

    def __iter__(self) -> Iterator[str]:
        return iter(self.module)

    def __len__(self) -> int:
        return len(self.module)


def resolved(hint: Any, module: Mapping[str, Any]) -> Any:
    """Return the type that an annotation denotes, or `Any` if the annotation cannot be resolved."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, {}, _Names(module))
    except Exception:
        return Any


def fits(hint: Any, value: Any) -> bool:
    """Whether `value` fits the annotation `hint`."""
    if _silent(hint):
        return True
    if hint is None or hint is type(None):
        return value is None
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str | int | None) and value in inner
    if origin in (Union, types.UnionType):
        return _is_array_like(hint, value) if _array_like(hint) else any(fits(one, value) for one in inner)
    if origin is not None:
        return _fits_generic(origin, inner, value)
    if hint in (bool, int, float, str):
        return _fits_plain(hint, value)
    return _is_instance(value, hint) and (not hasattr(value, "dtype") or readable(value))


def _silent(hint: Any) -> bool:
    return hint in (Any, object) or isinstance(hint, str | TypeVar) or not (isinstance(hint, type) or _has_parts(hint))


def _has_parts(hint: Any) -> bool:
    return hint is None or get_origin(hint) is not None


def _fits_plain(hint: type, value: Any) -> bool:
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is str:
        return isinstance(value, str) and "\0" not in value and encodes(value)
    try:
        whole_number(value) if hint is int else real_number(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _fits_generic(origin: Any, inner: tuple[Any, ...], value: Any) -> bool:
    if origin is Callable:
        return callable(value)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if len(inner) == 2 and inner[1] is ...:
            return _all_fit(inner[0], value)
        return len(value) == len(inner) and all(map(fits, inner, value))
    if not isinstance(origin, type):
        return True
    if issubclass(origin, Mapping):
        keys, values = inner if len(inner) == 2 else (Any, Any)
        return isinstance(value, Mapping) and _all_fit(keys, value) and _all_fit(values, value.values())
    if issubclass(origin, Sequence) or origin.__name__ in ("Iterable", "Collection"):
        ordered = hasattr(value, "__iter__") and bool(getattr(value, "ndim", 1))
        if not ordered or isinstance(value, str | bytes | bytearray | Mapping | Set | AsArray):
            return False
        if hasattr(value, "dtype") and not readable(value):
            return False
        # An iterator can be read only once, so its items are not checked.
        return isinstance(value, Iterator) or _all_fit(inner[0] if inner else Any, value)
    return _is_instance(value, origin)


def _all_fit(hint: Any, values: Any) -> bool:
    return _silent(hint) or all(fits(hint, value) for value in islice(values, _LOOKED_AT))


def _is_instance(value: Any, hint: Any) -> bool:
    try:
        return isinstance(value, hint)
    except Exception:
        return True


def _array_like(hint: Any) -> bool:
    """Whether an annotation is numpy's `ArrayLike`, which is a union of protocols."""
    return any(getattr(one, "__name__", "") == "_NestedSequence" for one in map(get_origin, get_args(hint)) if one)


def _is_array_like(hint: Any, value: Any) -> bool:
    if value is None:
        return type(None) in get_args(hint)
    if hasattr(value, "dtype") and hasattr(value, "ndim") and not readable(value):
        return False
    if isinstance(value, str | bytes | bytearray | Mapping | Set | AsArray) or not hasattr(value, "__iter__"):
        return False
    try:
        made = np.asarray(value)
    except Exception:
        return False
    return made.ndim > 0 and made.dtype.kind in "biufUS" and made.size > 0


def readable(array: Any) -> bool:
    """Whether numpy can read the values of an array or a tensor."""
    if hasattr(array, "is_meta"):
        strided = str(array.layout) == "torch.strided" and not array.is_quantized
        return strided and not array.is_meta and not array.requires_grad
    return getattr(array.dtype, "kind", "f") in "biufcSU" and not np.ma.is_masked(array)


def described(hint: Any) -> str:
    """Describe what an annotation expects, for error messages."""
    plain = {bool: "True or False", int: "a whole number", float: "a number", str: "text", None: "None"}
    if hint in (bool, int, float, str, None):
        return plain[hint]
    if hint is type(None):
        return "None"
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return shortened(map(repr, inner)) if len(inner) > 2 else " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        if _array_like(hint):
            return "an array of values" + (" or None" if type(None) in inner else "")
        return " or ".join(dict.fromkeys(described(one) for one in inner))
    if origin is Callable:
        return "a function"
    if origin is tuple:
        open_ended = len(inner) == 2 and inner[1] is ...
        return f"a tuple of {described(inner[0])}" if open_ended else f"({', '.join(map(described, inner))})"
    if origin is os.PathLike:
        return "a path"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None:
        return "a list" if not inner or _silent(inner[0]) else f"a list of ({described(inner[0])})"
    if hasattr(hint, "dim_str"):
        return f"{hint.array_type.__name__} of numbers, shaped [{hint.dim_str.strip()}]"
    name = getattr(hint, "__name__", str(hint))
    return _PROTOCOLS.get(name, name)


def refusal(name: str, hint: Any, value: Any) -> str | None:
    """Return an error message if `value` does not fit `hint` or cannot be used as argument `name`, otherwise `None`."""
    if not fits(hint, value):
        return f"{name}={shown(value)}: expected {described(hint)}."
    if hasattr(value, "dtype") and hasattr(value, "ndim") and not readable(value):
        return f"{name}={shown(value)}: expected an array whose values can be read (dense, detached, in memory)."
    if any(map(_beyond, value if isinstance(value, tuple | list) else [value])):
        return f"{name}={shown(value)}: expected finite numbers of ordinary size."
    if not can_be_quoted(value):
        return f"{name}={shown(value)}: nested too deeply, or too large."
    return None


def _beyond(value: Any) -> bool:
    """Whether a number is too large, infinite or NaN."""
    if isinstance(value, int):
        return abs(value) > _LARGEST
    return isinstance(value, float | np.floating) and not (math.isfinite(value) and abs(value) < _LARGEST_REAL)


def can_be_quoted(value: Any) -> bool:
    """Whether `repr` works for a value. It fails if a number is too long or a list or mapping is nested too deeply."""
    try:
        repr(value if isinstance(value, int | list | tuple | dict | set) else None)
    except (RecursionError, ValueError):
        return False
    return True
