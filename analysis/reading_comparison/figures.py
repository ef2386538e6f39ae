"""Draw `Readings` in three panels over the blocks, for print (matplotlib) and screen (plotly).

Colour and marker show the position, and the line style shows the branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from analysis.figures.canvas import canvas, wants_caption
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, SEVERAL, SYMBOLS, on_white, styled

if TYPE_CHECKING:
    from analysis.reading_comparison.comparison import Readings

PANELS = (
    ("cosine", "cosine to the direction read at\n{reference}", (-1.05, 1.05), 0.0),
    ("auc", "AUC between the poles,\non held-out prompts", (-0.03, 1.03), 0.5),
    ("onset_correlation", "correlation with onsets per second,\nwithin the poles", (-1.05, 1.05), 0.0),
)
"""Column, axis label, limits, and the value if there is no effect."""
LINES: dict[str, tuple[Any, str]] = {"cond": ("-", "solid"), "null": (":", "dot"), "both": ("--", "dash")}
"""The line style of each branch, in matplotlib and in plotly."""


def paper(result: Readings) -> Figure:
    """Draw the three panels side by side, with the caption below."""
    table = result.table
    positions, branches = (list(dict.fromkeys(table[name])) for name in ("position", "branch"))
    with styled():
        figure = canvas((10.2, 4.0))
        for axes, (column, label, limits, nothing) in zip(figure.subplots(1, 3), PANELS, strict=True):
            for colour, marker, position, branch, rows in _lines(table):
                axes.plot(
                    rows["layer"], rows[column], color=colour, marker=marker, markersize=4, linewidth=1.2,
                    linestyle=LINES[branch][0], label=f"{position}, {branch}",
                )  # fmt: skip
            axes.axhline(nothing, color=BLACK, linewidth=0.8)
            axes.set_ylim(*limits)
            axes.set_xlabel("block")
            axes.set_ylabel(label.format(reference=", ".join(result.reference)))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        looks = dict(zip(positions, SEVERAL, strict=False))
        handles = [
            Line2D([], [], color=looks[name][0], marker=looks[name][1], label=f"position {name}") for name in positions
        ]
        handles += [Line2D([], [], color=BLACK, linestyle=LINES[name][0], label=f"branch {name}") for name in branches]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        if wants_caption():
            figure.supxlabel(caption(result), fontsize=8)
    return figure


@literally
def screen(result: Readings) -> go.Figure:
    """Draw the same panels for the screen. Hovering over a line shows its name."""
    figure = make_subplots(cols=3, horizontal_spacing=0.09)
    for index, (column, label, limits, nothing) in enumerate(PANELS, start=1):
        for colour, marker, position, branch, rows in _lines(result.table):
            figure.add_scatter(
                x=rows["layer"],
                y=rows[column],
                mode="lines+markers",
                line={"color": colour, "dash": LINES[branch][1]},
                marker={"symbol": SYMBOLS[marker], "size": 6},
                name=f"{position}, {branch}",
                legendgroup=f"{position}, {branch}",
                showlegend=index == 1,
                hovertemplate="block %{x}: %{y:+.2f}",
                row=1,
                col=index,
            )
        figure.add_hline(y=nothing, line_color=BLACK, line_width=1, row=1, col=index)  # pyright: ignore[reportArgumentType]
        title = label.format(reference=", ".join(result.reference)).replace("\n", "<br>")
        figure.update_yaxes(title_text=title, range=limits, col=index)
        figure.update_xaxes(title_text="block", col=index)
    return on_white(figure).update_layout(title=caption(result).replace("\n", "<br>"), title_font_size=13)


def caption(result: Readings) -> str:
    """Return a description of the panels."""
    n, m = result.prompts
    return (
        f"{result.concept} read at different positions of the same clips ({n} + {m} prompts, {result.seconds:g} s "
        f"each, {result.model}).\nLines end where prompts cannot be separated, because there is no direction there."
    )


def _lines(table: pd.DataFrame) -> Iterator[tuple[str, str, str, str, pd.DataFrame]]:
    """Return the colour, marker, position, branch and rows of every line that has a direction at some block."""
    positions = list(dict.fromkeys(table["position"]))
    for (position, branch), rows in table.groupby(["position", "branch"], sort=False):
        if rows["cosine"].notna().any():
            colour, marker = SEVERAL[positions.index(position) % len(SEVERAL)]
            yield colour, marker, str(position), str(branch), rows.sort_values("layer")
