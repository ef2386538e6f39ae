"""The door of every public function and method: what fails on an argument of the wrong kind is refused by its name.

Each function checks its own arguments first and in its own words. What still ends in an error of Python, torch, numpy
or pandas is compared with the annotations: an argument that does not fit its own is what is wrong, and is named. If all
fit, the error is left as it is.
"""

import errno
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import wraps
from itertools import islice
from types import FunctionType
from typing import Any, TypeVar

from audiolens.checks import shown
from audiolens.errors import AudioLensError, InputError, InputTypeError
from audiolens.kinds import can_be_quoted, fits, refusal, resolved, told

T = TypeVar("T")
OPERATORS = (
    "__init__", "__getitem__", "__contains__", "__add__", "__sub__", "__mul__", "__rmul__", "__truediv__", "__call__",
    "__radd__", "__rsub__",
)  # fmt: skip
MOST_VALUES = 2**32
"""Of an array: a view of one value can claim any number."""
MOST_VALUES_READ = 1_000_000
"""Of an iterator, which may be without end, and of a range."""
_LOOKED_AT = 1_000
"""Items of a list, of which each is an array of its own."""
_NO_PLACE = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM)
INNER = ("change",)
"""What a run calls at every step, and no user does."""
_SMALL = (str, int, float, bool, type(None), list, tuple, dict)
_MARK = "__guarded__"


def guarded(made: T) -> T:
    """A function, or a class with all its public methods, whose arguments are compared with their annotations when it
    fails."""
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
    """Whether a function has such a door."""
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
            raise_named(function, args, kwargs, error)
            raise
        return _watched(made, function, args, kwargs) if inspect.isgenerator(made) else made

    setattr(inside, _MARK, True)
    return inside


def _watched(made: Iterator[Any], function: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
    """A generator's arguments are first read where its items are."""
    try:
        yield from made
    except AudioLensError:
        raise
    except Exception as error:
        raise_named(function, args, kwargs, error)
        raise


def raise_named(function: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> None:
    """Raise an error that names the first argument which does not fit its annotation; nothing if all do.

    Raises:
        InputTypeError: naming it.
        InputError: naming the path, where all fit and the system knows no such place.
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
    """Compare the fields of a dataclass that users make by hand with their annotations, when it is made.

    Raises:
        InputTypeError: naming the first field that does not fit.
    """
    for field in fields(made):
        module = vars(sys.modules[type(made).__module__])
        hint, value = resolved(field.type, module), getattr(made, field.name)
        if not fits(hint, value):
            raise InputTypeError(f"{field.name}={shown(value)}: expected {told(hint)}.")
        if not can_be_quoted(value):
            raise InputTypeError(f"{field.name}={shown(value)}: nested too deeply, or too large.")


def _arguments(function: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every argument given, with its name and what is expected there; none if they do not even bind."""
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
    """A value as it is, and an iterator as the list of its items: read once here, it has an end."""
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
    """Whether an array or a range claims more values than could be read."""
    return bool(value[MOST_VALUES_READ:]) if isinstance(value, range) else _count(value) > MOST_VALUES


def _items(value: Any) -> Iterator[Any]:
    """The first items of a list or a mapping, in which arrays may stand; none of anything else."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return iter(())
    return islice(value, _LOOKED_AT)


def _count(value: Any) -> int:
    """The values of an array or a tensor, and 0 of anything else."""
    if not hasattr(value, "dtype") or not hasattr(value, "ndim"):
        return 0
    size = value.numel() if callable(getattr(value, "numel", None)) else value.size
    return size if isinstance(size, int) else 0
