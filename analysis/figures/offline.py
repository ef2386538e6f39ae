"""A plotly figure that needs no network in a notebook, and sends nothing anywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import plotly.graph_objects as go

from analysis.figures.literal import as_typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTLY = "application/vnd.plotly.v1+json"
"""The type of plotly's figures in notebooks, for which Jupyter's extension in the plotly package has the library."""
CONFIG: Mapping[str, Any] = {"displaylogo": False, "plotlyServerURL": "", "responsive": True, "showSendToCloud": False}
"""plotly's settings for showing a figure. By default, plotly 7 has a button that uploads the figure."""


class OfflineFigure(go.Figure):
    """A figure that notebooks show interactively, or else as a picture.

    A notebook stores the figure's data, a PNG of the same result for programs without plotly (such as GitHub), and the
    result in words. It stores no script, so that every program takes plotly's library from its own installation. In
    `show`, `to_html` and `write_html`, `CONFIG` applies unless the caller sets other values.
    """

    # IPython would prefer these to the bundle below. Both depend on plotly's settings, and load the library from the
    # network in some of them.
    _ipython_display_ = None  # pyright: ignore[reportAssignmentType]
    _repr_html_ = None  # pyright: ignore[reportAssignmentType]
    _picture: Callable[[], Figure] | None = None
    _words = ""

    @classmethod
    def of(cls, figure: go.Figure, picture: Callable[[], Figure], words: str) -> Self:
        """Return a copy of a figure, with the function that draws its picture, and the result in words."""
        made = cls(figure)
        made._picture, made._words = picture, words
        return made

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None, validate: bool = True, **_: Any
    ) -> dict[str, Any]:
        data = json.loads(str(self.to_json(validate=validate)))
        bundle = {PLOTLY: {**data, "config": {**CONFIG}}, "text/plain": self._words or "an interactive figure"}
        if self._picture is not None:
            bundle["image/png"] = base64.b64encode(_png(self._picture())).decode("ascii")
        kept = {kind for kind in bundle if include is None or kind in include} - {*(exclude or ())}
        return {kind: value for kind, value in bundle.items() if kind in kept}

    def show(self, *args: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
        return super().show(*args, config={**CONFIG, **(config or {})}, **options)

    def to_html(self, config: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> Any:
        return super().to_html({**CONFIG, **(config or {})}, *args, **options)

    def write_html(self, file: Any, config: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> Any:
        return super().write_html(file, {**CONFIG, **(config or {})}, *args, **options)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with as_typed():
        # Without the version of matplotlib, which would change the stored notebooks.
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
