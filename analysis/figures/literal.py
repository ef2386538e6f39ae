"""Literal text in figures: a prompt, a pole or a token is shown as it is, never set as mathematics, markup or a link.

matplotlib sets what stands between two `$` as mathematics, and fails where it is none. plotly does so in notebooks, and
follows HTML everywhere: `<a>` in a prompt would be a link.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib as mpl
import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

P = ParamSpec("P")
AS_TYPED: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}
"""matplotlib's settings for that, of which a text keeps the first from when it is made."""
_OURS = re.compile(r"(</?(?:br|sup|extra)>)")
_SIGNS = str.maketrans({"<": "&lt;", ">": "&gt;", "$": "&#36;"})


@contextmanager
def as_typed() -> Iterator[None]:
    """While a matplotlib figure is drawn: axes make the labels of further ticks only then."""
    with mpl.rc_context(AS_TYPED):
        yield


def literally(function: Callable[P, go.Figure]) -> Callable[P, go.Figure]:
    """A function whose plotly figure shows all texts as they are, but for the breaks and small print of our titles."""

    @wraps(function)
    def figure(*args: P.args, **kwargs: P.kwargs) -> go.Figure:
        found: Any = function(*args, **kwargs)
        for part in (*found.data, found.layout):
            part.update({name: _shown(value) for name, value in part.to_plotly_json().items() if name != "type"})
        return found

    return figure


def in_template(text: str) -> str:
    """Text that is put into a template of plotly's, whose fields begin with %."""
    return text.replace("%", "&#37;")


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(part if _OURS.fullmatch(part) else part.translate(_SIGNS) for part in _OURS.split(value))
    if isinstance(value, dict):
        return {name: item if name == "template" else _shown(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        flat = np.empty(value.size, dtype=object)
        flat[:] = [_shown(item) for item in value.flat]
        return flat.reshape(value.shape)
    return value
