"""Captions and heat maps for figures of grids and heads, in matplotlib and plotly."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.canvas import wants_caption
from analysis.figures.style import DIVERGING, on_white

SEQUENTIAL = "cividis"


def captioned(figure: Figure, caption: str) -> Figure:
    """Add a caption below the figure, wrapped to its width, unless the figure is drawn without a caption."""
    if not wants_caption():
        return figure
    width = int(figure.get_figwidth() * 17)
    figure.supxlabel("\n".join(textwrap.wrap(caption, width)), fontsize=7.5, x=0.01, ha="left", color="#333333")
    return figure


def heat(
    axes: Axes,
    values: np.ndarray,
    *,
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
    extent: tuple[float, float] | None = None,
    limit: float | None = None,
    signed: bool = True,
    numbers: bool = False,
) -> Any:
    """Draw a heat map whose first row is at the bottom.

    `x` and `y` name the columns and rows. `extent` is the range of a continuous x axis.
    """
    top = limit or float(np.nanmax(np.abs(values))) or 1.0
    rows, columns = values.shape
    left, right = extent or (-0.5, columns - 0.5)
    image = axes.imshow(
        values, origin="lower", aspect="auto", cmap=DIVERGING if signed else SEQUENTIAL,
        vmin=-top if signed else 0, vmax=top, extent=(left, right, -0.5, rows - 0.5), interpolation="nearest",
    )  # fmt: skip
    axes.grid(False)
    if x is not None:
        places = _thinned(columns)
        axes.set_xticks(places, [str(x[place]) for place in places])
    if y is not None:
        places = _thinned(rows)
        axes.set_yticks(places, [str(y[place]) for place in places])
    if numbers and rows * columns <= 160:
        for (row, column), value in np.ndenumerate(values):
            dark = abs(value) > 0.6 * top if signed else value < 0.5 * top
            # Numbers much smaller than the largest would only clutter the figure.
            if abs(value) >= 0.03 * top:
                axes.text(
                    column, row, f"{value:.2g}", ha="center", va="center", fontsize=6,
                    color="white" if dark else "black",
                )  # fmt: skip
    return image


def screen_heat(values: np.ndarray, x: Any, y: Any, unit: str, *, signed: bool = True, **options: Any) -> go.Heatmap:
    """Draw the interactive version of `heat` (plotly trace)."""
    top = float(np.nanmax(np.abs(values))) or 1.0
    return go.Heatmap(
        z=values, x=list(x), y=list(y), colorscale=DIVERGING if signed else SEQUENTIAL.capitalize(),
        zmin=-top if signed else 0, zmax=top, colorbar_title=unit, **options,
    )  # fmt: skip


def screen_plain(figure: go.Figure, caption: str, *, width: int = 110) -> go.Figure:
    """Style an interactive figure and add a caption below it."""
    lines = textwrap.wrap(caption, width)
    on_white(figure).update_layout(margin={"l": 70, "r": 20, "t": 60, "b": 75 + 16 * len(lines)})
    return figure.add_annotation(
        text="<br>".join(lines), xref="paper", yref="paper", x=0, y=0, yshift=-50, xanchor="left", yanchor="top",
        align="left", showarrow=False, font={"size": 11, "color": "#333333"},
    )  # fmt: skip


def _thinned(count: int, most: int = 16) -> list[int]:
    return list(range(0, count, -(-count // most)))
