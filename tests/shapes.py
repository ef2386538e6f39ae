"""The type checker of the tests: it checks shapes only, so that other mistakes reach the errors written for them.

`pyproject.toml` names it; jaxtyping calls it with a stand-in for every function, with evaluated annotations.
"""

from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from beartype import beartype
from jaxtyping import AbstractArray


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and results of `function` that are annotated with a jaxtyping shape."""
    annotations = getattr(function, "__annotations__", {})
    kept = {name: any_word(hint) for name, hint in annotations.items() if mentions_shape(hint)}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(function)


def mentions_shape(hint: Any) -> bool:
    """Whether a shape stands anywhere in `hint`."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(mentions_shape(argument) for argument in get_args(hint))


def any_word(hint: Any) -> Any:
    """The hint with any text in place of the words that it lists."""
    if get_origin(hint) is Literal:
        return str
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(any_word(argument) for argument in get_args(hint))]  # noqa: UP007
    return hint
