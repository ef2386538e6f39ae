"""Arguments that travel together, accepted as one frozen value beside the loose arguments that the value holds.

`takes` decorates a function whose signature has both. It looks at which arguments the caller wrote, not at their
values, so that an argument is noticed even if it equals its default.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, fields
from functools import wraps
from typing import Any, TypeVar

from audiolens.checks import shown
from audiolens.errors import GivenTwiceError, InputError, InputTypeError

T = TypeVar("T", bound=Callable[..., Any])
_MARK = "__groups__"


@dataclass(frozen=True, eq=False)
class Group:
    """A group that a function takes: its class, and the loose arguments of each field.

    `settled` returns the keyword arguments of a call, with those that the group holds if it `spreads`.
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
    keeps: Collection[str] = (),
    single: Collection[str] = (),
    **called: str | tuple[str, ...] | None,
) -> Callable[[T], T]:
    """Decorate a function or a dataclass that takes `kind`, a frozen dataclass, as its argument `name`.

    The function is called with the loose arguments that the group holds. A field of the group that is `None` or empty
    by default, and was left so, keeps the function's own default.

    Args:
        spread: `False` only checks the arguments, for a function that uses the group as it is.
        keeps: fields without a loose argument that the function reads from the group itself.
        single: fields that may hold a list, of which the function takes one entry.
        called: the loose argument for a field, if it has another name; further names are aliases of it. `None` means
            that the function has none, although one of its arguments has the field's name.

    Raises, when the decorated function is called:
        InputTypeError: if the group has the wrong type.
        GivenTwiceError: if the group and one of its loose arguments were both given.
        InputError: if the group states something that the function does not take.
    """

    def decorate(function: Any) -> Any:
        if isinstance(function, type):
            made: Any = function
            made.__init__ = decorate(made.__init__)
            return function
        signature = inspect.signature(function)
        loose = {one.name: _names(called.get(one.name, one.name), signature) for one in fields(kind)}

        def settled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
            """The keyword arguments of a call, with the loose arguments that the group holds."""
            group = kwargs.get(name)
            if group is None:
                return kwargs
            if not isinstance(group, kind):
                raise InputTypeError(f"{name}={shown(group)}: expected a {kind.__name__}, or None.")
            try:
                given = signature.bind_partial(*args, **kwargs).arguments
            except TypeError:
                # Python's own error, raised by the call, says what is wrong.
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
                elif field.name not in keeps and value != field.default:
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
    """The groups that a function or a class takes, by argument."""
    made = function.__init__ if isinstance(function, type) else function
    return getattr(made, _MARK, {})


def loosened(function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The keyword arguments of a call, with loose arguments instead of the groups that spread, to forward them.

    Raises:
        InputTypeError, InputError: as the call itself.
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
    """Whether a field has its default, and that default says nothing."""
    empty = field.default is None or field.default == ()
    return empty and (value is None or (isinstance(value, list | tuple) and not len(value)))


def _one(name: str, field: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if len(value) != 1:
        raise InputError(f"{name} holds {len(value)} {field}: expected one.")
    return value[0]


def _called(function: Any) -> str:
    return function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
