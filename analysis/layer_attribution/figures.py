"""Draw the layer-attribution plot for print (matplotlib) and screen (plotly)."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, SEVERAL, SYMBOLS, errors, styled
from analysis.resampling import COVERAGE

if TYPE_CHECKING:
    from analysis.layer_attribution.evidence import LayerAttribution


def paper(result: LayerAttribution, normalised: bool) -> Figure:
    """Draw one panel per kind of evidence, or a single panel with each value as a share of the largest of its kind."""
    count = 1 if normalised else len(result.evidence)
    with styled():
        figure = canvas((5.6, 3.4 if normalised else 1.0 + 1.25 * count))
        panels = figure.subplots(count, 1, sharex=True, squeeze=False).ravel()
        for index, one in enumerate(result.evidence):
            axes = panels[0 if normalised else index]
            colour, marker = SEVERAL[index % len(SEVERAL)]
            scale = float(np.nanmax(np.abs(one.values))) or 1.0
            by = scale if normalised else 1.0
            axes.errorbar(
                one.layers, one.values / by, yerr=errors(one.values, one.low, one.high) / by, color=colour,
                marker=marker, markersize=4.5, capsize=2, elinewidth=1, linewidth=1.3,
                label=f"{one.name} (1 is {scale:.3g} {one.unit})" if normalised else one.name,
            )  # fmt: skip
            at = one.layers.index(one.peak)
            axes.plot(
                [one.peak], [one.values[at] / by], marker="o", markersize=11, markerfacecolor="none",
                markeredgecolor=colour, linestyle="none",
            )  # fmt: skip
            axes.axhline(one.chance / by, color=BLACK, linewidth=0.7, linestyle=":" if one.chance else "-")
            if not normalised:
                axes.set_title(one.name, fontsize=9, loc="left")
                axes.set_ylabel(textwrap.fill(one.unit or one.name, 16), fontsize=7.5)
            axes.margins(y=0.18)
        panels[-1].set_xlabel("block")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if normalised:
            panels[0].set_ylabel("share of the largest")
            figure.legend(loc="outside upper center", ncols=2)
        return captioned(figure, _caption(normalised))


@literally
def screen(result: LayerAttribution, normalised: bool) -> go.Figure:
    """Draw the interactive version (plotly)."""
    count = 1 if normalised else len(result.evidence)
    titles = None if normalised else [one.name for one in result.evidence]
    figure = make_subplots(rows=count, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.25 / count)
    for index, one in enumerate(result.evidence):
        colour, marker = SEVERAL[index % len(SEVERAL)]
        scale = float(np.nanmax(np.abs(one.values))) or 1.0
        by = scale if normalised else 1.0
        below, above = errors(one.values, one.low, one.high) / by
        row = 1 if normalised else index + 1
        figure.add_scatter(
            x=list(one.layers), y=one.values / by, customdata=one.values, mode="lines+markers", line_color=colour,
            marker={"symbol": SYMBOLS[marker], "size": 8}, name=one.name, row=row, col=1,
            error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below},
            hovertemplate=f"block %{{x}}: %{{customdata:.4g}} {one.unit}<extra>{one.name}</extra>",
            showlegend=normalised,  # else the panels have names
        )  # fmt: skip
        figure.add_scatter(
            x=[one.peak], y=[one.values[one.layers.index(one.peak)] / by], mode="markers", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 18, "color": colour, "line": {"width": 2}}, showlegend=False,
            name=f"largest {one.name}", row=row, col=1,
        )  # fmt: skip
        if one.chance:
            figure.add_hline(y=one.chance / by, line_dash="dot", line_width=1, line_color=BLACK, row=row, col=1)  # pyright: ignore[reportArgumentType]
        figure.update_yaxes(
            title_text="share of the largest" if normalised else one.unit, rangemode="tozero", row=row, col=1
        )
    figure.update_xaxes(title_text="block", row=count, col=1)
    figure.update_layout(height=420 if normalised else 160 + 170 * count)
    return screen_plain(figure, _caption(normalised))


def _caption(normalised: bool) -> str:
    scale = "each as a share of its largest magnitude" if normalised else "each in its own unit"
    return (
        f"Evidence at each block, {scale}. Bars are {COVERAGE} intervals, if known; a ring marks the largest value, "
        "and a dotted line chance."
    )
