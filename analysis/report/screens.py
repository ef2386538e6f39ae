"""Adapt interactive figures to the page by removing their captions and preventing overlaps at any width."""

from __future__ import annotations

import textwrap
from typing import Any

import plotly.graph_objects as go

_LINE, _NAME = 17, 26
"""Heights in pixels of a title line and of a panel's name."""
_PLOT = 330


def bare(figure: go.Figure, first: str = "") -> go.Figure:
    """Remove the figure's own caption.

    `first` is the name of the first panel. This function adds the name above the panel and moves the legend above the
    name, because the original figure has no room for the name next to the legend.
    """
    without_caption(figure)
    layout: Any = figure.layout
    above = 0.0
    if first:
        figure.add_annotation(
            text=first, x=0.5, y=1, xref="paper", yref="paper", xanchor="center", yanchor="bottom", showarrow=False,
            font_size=16,
        )  # fmt: skip
        above = _NAME / (layout.height - 110)
    axes: Any = figure.select_yaxes()
    for axis in axes:
        # A panel is lower than the names of most units are long.
        axis.title.text = "<br>".join(textwrap.wrap(axis.title.text or "", 20))
    figure.update_yaxes(title_font_size=10)
    legend = {"orientation": "h", "y": 1 + above, "yanchor": "bottom"}
    return figure.update_layout(margin_b=60, margin_t=50, legend=legend)


def caption_of(figure: go.Figure) -> str:
    """Return the figure's own caption, as HTML on one line, or an empty string."""
    layout: Any = figure.layout
    return " ".join(note.text.replace("<br>", " ") for note in layout.annotations if _is_caption(note))


def without_caption(figure: go.Figure) -> go.Figure:
    """Remove the figure's own caption."""
    layout: Any = figure.layout
    layout.annotations = [note for note in layout.annotations if not _is_caption(note)]
    return figure


def slid(figure: go.Figure) -> go.Figure:
    """Make room for the title of a figure, which may have a slider.

    The small print in titles is removed, because the page's caption repeats it.
    """
    layout: Any = figure.layout
    layout.title.text = large(layout.title.text)
    top = (layout.title.text.count("<br>") + 1) * _LINE + 14
    for slider in layout.sliders:
        for step in slider.steps:
            data, further = step.args
            step.args = (data, {**further, "title.text": large(further["title.text"])})
    # Scatter plots have a legend below the axes, whereas heat maps have a colour bar at the side.
    below = 80 if any(trace.type == "scatter" for trace in _traces(figure)) else 50
    figure.update_layout(
        title={"font_size": 12.5, "yref": "container", "y": 1, "yanchor": "top", "pad": {"t": 10}},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        margin={"t": top, "b": below, "r": 20}, height=top + _PLOT + below,
    )  # fmt: skip
    return figure.update_xaxes(automargin=True, title_standoff=12)


def large(title: str) -> str:
    """Return a title without its lines of small print."""
    return "<br>".join(line for line in title.split("<br>") if not line.startswith("<sup>"))


def opened(figure: go.Figure, layer: int) -> go.Figure:
    """Set the figure's slider to a given block."""
    slider: Any = figure.layout["sliders"][0]
    index = [step.label for step in slider.steps].index(str(layer))
    data, further = slider.steps[index].args
    slider.active = index
    for trace, visible in zip(_traces(figure), data["visible"], strict=True):
        trace.update(visible=visible)
    return figure.update_layout({key.replace(".", "_"): value for key, value in further.items()})


def _is_caption(note: Any) -> bool:
    return note.yanchor == "top" and note.y == 0


def _traces(figure: go.Figure) -> Any:
    return figure.data
