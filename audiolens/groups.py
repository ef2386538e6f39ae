"""Let functions accept a group of arguments as one frozen dataclass, as an alternative to separate arguments.

`takes` decorates a function whose signature has both the group and the separate ("loose") arguments. It detects every
argument that the caller passes, even if its value equals the default.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, fields
from functools import wraps
from typing import Any, Literal, TypeVar

from audiolens.checks import shown
from audiolens.errors import GivenTwiceError, InputError, InputTypeError

T = TypeVar("T", bound=Callable[..., Any])
_MARK = "__groups__"


@dataclass(frozen=True, eq=False)
class Group:
    """A group that a function accepts: its class, and the loose arguments that correspond to each field.

    `settled` returns the keyword arguments of a call. If the group `spreads`, they include the values in the group.
    """

    kind: type
    loose: dict[str, tuple[str, ...]]
    spreads: bool
    settled: Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]


def takes(
    name: str,
    kind: type,
    *,
    spread: bool = True,
    keeps: Collection[str] | Literal["all"] = (),
    single: Collection[str] = (),
    **called: str | tuple[str, ...] | None,
) -> Callable[[T], T]:
    """Decorate a function or a dataclass that accepts a group of class `kind` as its argument `name`.

    The function receives the values in the group as its loose arguments. If a field is `None` or empty by default and
    was not set, the function's own default applies.

    Args:
        kind: the class of the group, a frozen dataclass.
        spread: `False` only checks the arguments, for a function that reads the group itself.
        keeps: fields that have no loose argument and that the function reads from the group itself, or "all".
        single: fields that can hold a list, but only a list with exactly one entry.
        called: the name of a field's loose argument if it differs from the field's name, or a tuple of this name and
            its aliases. `None` means that a field has no loose argument, although an argument has the field's name.

    Raises, when the decorated function is called:
        InputTypeError: if the group has the wrong type.
        GivenTwiceError: if the group and one of its loose arguments were both given.
        InputError: if the group sets a field that the function does not accept.
    """

    def decorate(function: Any) -> Any:
        if isinstance(function, type):
            made: Any = function
            made.__init__ = decorate(made.__init__)
            return function
        signature = inspect.signature(function)
        loose = {one.name: _names(called.get(one.name, one.name), signature) for one in fields(kind)}

        def settled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
            """Return the keyword arguments of a call, including those from the group."""
            group = kwargs.get(name)
            if group is None:
                return kwargs
            if not isinstance(group, kind):
                raise InputTypeError(f"{name}={shown(group)}: expected a {kind.__name__}, or None.")
            try:
                given = signature.bind_partial(*args, **kwargs).arguments
            except TypeError:
                # The call itself will raise Python's own error, which explains what is wrong.
                return kwargs
            held = {}
            for field in fields(kind):
                value, own = getattr(group, field.name), loose[field.name]
                if value is None and field.name in getattr(group, "_open", ()):
                    continue
                if twice := next((one for one in own if one in given), None):
                    raise GivenTwiceError(
                        f"{name}= and {twice}= were both given: {name} already includes {field.name}, so give one of "
                        "them."
                    )
                if _left_out(field, value):
                    continue
                if own:
                    held[own[0]] = _one(name, field.name, value) if field.name in single else value
                elif keeps != "all" and field.name not in keeps and value != field.default:
                    raise InputError(
                        f"{name}={kind.__name__}({field.name}={shown(value)}): {_called(function)} takes no "
                        f"{field.name}; leave it out."
                    )
            return {**kwargs, **held} if spread else kwargs

        @wraps(function)
        def resolved(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **settled(args, kwargs))

        setattr(resolved, _MARK, {**groups_of(function), name: Group(kind, loose, spread, settled)})
        return resolved

    return decorate


def groups_of(function: Any) -> dict[str, Group]:
    """The groups that a function or a class accepts, by argument name."""
    made = function.__init__ if isinstance(function, type) else function
    return getattr(made, _MARK, {})


def loosened(function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the keyword arguments of a call, with each group declared with `spread=True` replaced by its loose
    arguments.

    Raises:
        InputTypeError, InputError: for the same reasons as the call itself.
    """
    for name, group in groups_of(function).items():
        kwargs = group.settled(args, kwargs)
        if group.spreads:
            kwargs.pop(name, None)
    return kwargs


def _names(given: str | tuple[str, ...] | None, signature: inspect.Signature) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else given or ()
    return tuple(one for one in names if one in signature.parameters)


def _left_out(field: "Field[Any]", value: Any) -> bool:
    """Whether the value of a field is still `None` or empty, as it is by default."""
    empty = field.default is None or field.default == ()
    return empty and (value is None or (isinstance(value, list | tuple) and not len(value)))


def _one(name: str, field: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if len(value) != 1:
        raise InputError(f"{name} contains {len(value)} {field}: expected one.")
    return value[0]


def _called(function: Any) -> str:
    return function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
