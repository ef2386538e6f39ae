"""Show the interactive figures of results without a network, and as a picture where no script runs.

Every result's `.figure` is decorated with `interactive`, and then returns an `OfflineFigure`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any


def interactive(figure: Callable[..., Any]) -> Callable[..., Any]:
    """Return a result's `.figure` method whose figure also holds what `.plot` draws, and names the result."""

    @wraps(figure)
    def drawn(self: Any, *args: Any, **options: Any) -> Any:
        from analysis.figures.offline import OfflineFigure

        found = figure(self, *args, **options)
        return OfflineFigure.of(found, partial(self.plot, *args, **options), repr(self))

    return drawn
