"""The type checker of the tests: it checks shapes only, so that other mistakes reach the errors written for them.

`pyproject.toml` names it; jaxtyping calls it with a stand-in for every function, with evaluated annotations.
"""

import dataclasses
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray


def wrap_only_what_states_a_shape() -> None:
    """Let jaxtyping leave a function or dataclass as it is, unless its annotations contain a shape.

    jaxtyping wraps every function, binds its arguments at each call and compiles two stand-ins at each definition, also
    of a function within a function: more work than many of the calls themselves. Call this before the packages that
    are checked are imported.
    """
    wrap = jaxtyping.jaxtyped

    def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
        wrapped = wrap(typechecker=typechecker)
        return lambda defined: wrapped(defined) if states_a_shape(defined) else defined

    jaxtyping.jaxtyped = jaxtyped


def states_a_shape(defined: Any) -> bool:
    """Whether the annotations of a function, or of the constructor of a dataclass, contain a shape."""
    if inspect.isclass(defined):
        return dataclasses.is_dataclass(defined) and states_a_shape(defined.__init__)
    names, hints = getattr(defined, "__globals__", {}), getattr(defined, "__annotations__", {})
    return any(mentions_shape(_evaluated(hint, names)) for hint in hints.values())


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names)
    # A name that only type checkers import: jaxtyping does not check such an annotation either.
    except Exception:
        return None


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
