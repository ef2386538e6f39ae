"""Show prompts, poles and tokens literally in figures, never as mathematics, markup or links.

matplotlib typesets text between two `$` as mathematics, and fails if that text is not valid. In notebooks, plotly also
typesets such text. In addition, it always interprets HTML, so `<a>` in a prompt would become a link.
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
"""matplotlib settings for literal text. A text object takes the value of the first setting when it is created."""
_OURS = re.compile(r"(</?(?:br|sup|extra)>)")
_SIGNS = str.maketrans({"<": "&lt;", ">": "&gt;", "$": "&#36;"})


@contextmanager
def as_typed() -> Iterator[None]:
    """Apply `AS_TYPED` while a matplotlib figure is drawn, because axes create some tick labels only then."""
    with mpl.rc_context(AS_TYPED):
        yield


def literally(function: Callable[P, go.Figure]) -> Callable[P, go.Figure]:
    """Show text literally in the plotly figure that a function returns, except for our own line breaks and tags."""

    @wraps(function)
    def figure(*args: P.args, **kwargs: P.kwargs) -> go.Figure:
        found: Any = function(*args, **kwargs)
        for part in (*found.data, found.layout):
            told = part.to_plotly_json().items()
            # A template has none of our text, and plotly would check each of its hundreds of properties.
            part.update({name: _shown(value) for name, value in told if name not in ("type", "template")})
        return found

    return figure


def in_template(text: str) -> str:
    """Escape text for a plotly template, where % marks a field."""
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
