"""Make public functions and methods report which argument has the wrong type.

Each function checks its own arguments first. If Python, torch, numpy or pandas still raises an error, the arguments are
compared with their type annotations, and an `InputTypeError` names the first argument that does not fit. If all of them
fit, the original error is raised unchanged.
"""

import errno
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import wraps
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

from audiolens.checks import shown
from audiolens.errors import AudioLensError, InputError, InputTypeError
from audiolens.kinds import can_be_quoted, described, fits, refusal, resolved

T = TypeVar("T")
OPERATORS = (
    "__init__", "__getitem__", "__contains__", "__add__", "__sub__", "__mul__", "__rmul__", "__truediv__", "__call__",
    "__radd__", "__rsub__",
)  # fmt: skip
MOST_VALUES = 2**32
"""The largest number of values in an array. A limit is needed because a broadcast view of a single value can have any
size."""
MOST_VALUES_READ = 1_000_000
"""The largest number of items in a range or an iterator, which can be infinite."""
_LOOKED_AT = 1_000
"""The number of items of a list that are checked. Each item can be an array."""
_NO_PLACE = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM)
INNER = ("change", "at_layer")
"""Public methods that are left unwrapped, because a run calls them and users do not."""
_SMALL = (str, int, float, bool, type(None), list, tuple, dict)
_MARK = "__guarded__"
_OURS = tuple(f"{Path(__file__).parents[1] / name}{os.sep}" for name in ("audiolens", "analysis"))
_CYTHON = (".pyx", ".pxi", ".pxd")
"""The frames of compiled libraries have relative paths with these endings."""
_LIBRARIES = tuple({path for path in map(sysconfig.get_path, ("purelib", "platlib", "stdlib")) if path})


def guarded(made: T) -> T:
    """Wrap a function, or all public methods of a class, so that an error names the argument with the wrong type."""
    if isinstance(made, type):
        for name, value in list(vars(made).items()):
            if (name.startswith("_") and name not in OPERATORS) or name in INNER:
                continue
            if isinstance(value, classmethod | staticmethod):
                setattr(made, name, type(value)(_guarded(value.__func__)))
            elif isinstance(value, FunctionType):
                setattr(made, name, _guarded(value))
        return made
    return _guarded(made)  # pyright: ignore[reportReturnType, reportArgumentType]


def is_guarded(function: Any) -> bool:
    """Whether a function was wrapped by `guarded`."""
    return hasattr(function, _MARK)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        given, named = args, kwargs
        args = tuple(_within_bounds(function, value, given, named) for value in given)
        kwargs = {name: _within_bounds(function, value, given, named) for name, value in named.items()}
        try:
            made = function(*args, **kwargs)
        except AudioLensError:
            raise
        except Exception as error:
            if not _is_the_callers(error, function):
                raise_named(function, args, kwargs, error)
            raise
        return _watched(made, function, args, kwargs) if inspect.isgenerator(made) else made

    setattr(inside, _MARK, True)
    return inside


def _watched(made: Iterator[Any], function: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
    """Guard a generator while it is iterated over, because its body runs (and can fail) only then."""
    try:
        yield from made
    except AudioLensError:
        raise
    except Exception as error:
        if not _is_the_callers(error, function):
            raise_named(function, args, kwargs, error)
        raise


def _is_the_callers(error: Exception, function: Callable[..., Any]) -> bool:
    """Whether an error was raised in the caller's own code, rather than in audiolens or a library."""
    trace = error.__traceback__
    inside, known = False, (*_OURS, *_LIBRARIES, inspect.unwrap(function).__code__.co_filename)
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        inside = inside or file.startswith(_OURS)
        if inside and not file.startswith((*known, "<")) and not file.endswith(_CYTHON):
            return True
        trace = trace.tb_next
    return False


def raise_named(function: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> None:
    """Raise an error that names the first argument that does not fit its annotation, or return if all fit.

    Raises:
        InputTypeError: if an argument does not fit; the message names the argument.
        InputError: if all arguments fit, but a path cannot be opened; the message names the path.
    """
    for name, hint, value in _arguments(function, args, kwargs):
        try:
            reason = refusal(name, hint, value)
        except Exception:
            reason = f"{name}={shown(value)}: cannot be read."
        if reason is not None:
            raise InputTypeError(reason) from error
    if isinstance(error, OSError) and error.errno in _NO_PLACE and error.filename is not None:
        raise InputError(f"{shown(str(error.filename))}: {error.strerror}.") from error


def checked_kinds(made: Any) -> None:
    """Check that the fields of a dataclass that users instantiate fit their annotations.

    Raises:
        InputTypeError: if a field does not fit its annotation; the message names the first field that does not.
    """
    for field in fields(made):
        module = vars(sys.modules[type(made).__module__])
        hint, value = resolved(field.type, module), getattr(made, field.name)
        if not fits(hint, value):
            raise InputTypeError(f"{field.name}={shown(value)}: expected {described(hint)}.")
        if not can_be_quoted(value):
            raise InputTypeError(f"{field.name}={shown(value)}: nested too deeply, or too large.")


def _arguments(function: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield every argument as (name, annotation, value), or nothing if the arguments do not match the signature."""
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return
    module = vars(sys.modules[function.__module__])
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        hint = resolved(parameter.annotation, module)
        if hint is parameter.empty or name == "self":
            continue
        if name == "lens" and hint is Any:
            hint = resolved("AudioLens" if parameter.default is parameter.empty else "AudioLens | None", {})
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from ((name, hint, one) for one in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            yield from ((key, hint, one) for key, one in value.items())
        else:
            yield name, hint, value


def _within_bounds(function: Callable[..., Any], value: Any, args: Any, kwargs: Any) -> Any:
    """Return the value, or a list of its items if the value is an iterator. Too many items raise an error."""
    if type(value) in _SMALL and not any(map(_too_many, _items(value))):
        return value
    if isinstance(value, range) and _too_many(value):
        most = MOST_VALUES_READ
    elif isinstance(value, Iterator) and not hasattr(value, "read"):
        items = list(islice(value, MOST_VALUES_READ + 1))
        if len(items) <= MOST_VALUES_READ:
            return items
        most = MOST_VALUES_READ
    elif type(value) in _SMALL or _count(value) > MOST_VALUES:
        most = MOST_VALUES
    else:
        return value
    name = next((name for name, _, one in _arguments(function, args, kwargs) if one is value), "an argument")
    raise InputError(f"{name}={shown(value)}: expected at most {most:,} items.")


def _too_many(value: Any) -> bool:
    """Whether an array or a range has more values than can be read."""
    return bool(value[MOST_VALUES_READ:]) if isinstance(value, range) else _count(value) > MOST_VALUES


def _items(value: Any) -> Iterator[Any]:
    """Return the first items of a list, or the first values of a mapping. Any other object has no items."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return iter(())
    return islice(value, _LOOKED_AT)


def _count(value: Any) -> int:
    """The number of values in an array or a tensor, or 0 for any other object."""
    if not hasattr(value, "dtype") or not hasattr(value, "ndim"):
        return 0
    size = value.numel() if callable(getattr(value, "numel", None)) else value.size
    return size if isinstance(size, int) else 0
