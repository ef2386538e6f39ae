"""Figures of cosines between named directions at each layer, on paper and on screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.figures.plots import BLACK, styled

if TYPE_CHECKING:
    from analysis.similarity.cosines import Comparison


def paper(result: Comparison) -> Figure:
    """One heat map a layer, numbers in its lower half, a star where random directions do not reach."""
    count, names = len(result.layers), len(result.names)
    columns = min(4, count)
    lines = -(-count // columns)
    marks = result.significant
    size = 0.75 + 0.42 * names
    with styled():
        figure = Figure(figsize=(size * columns + 1.6, size * lines + 0.9), layout="constrained")
        panels = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel()
        image = None
        for place, axes in enumerate(panels):
            if place >= count:
                axes.set_visible(False)
                continue
            axes.grid(False)
            shown = np.where(np.tri(names, dtype=bool), result.cosines[place], np.nan)
            image = axes.imshow(shown, vmin=-1, vmax=1, cmap="PuOr_r")
            for row, column in zip(*np.tril_indices(names, -1), strict=True):
                value = result.cosines[place, row, column]
                text = f"{value:.2f}{'*' if marks[place, row, column] else ''}"
                shade = "white" if abs(value) > 0.65 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=shade)
            axes.set_title(f"block {result.layers[place]}", fontsize=8.5)
            axes.set_xticks(range(names), result.names, rotation=45, ha="right", fontsize=7.5)
            axes.set_yticks(range(names), result.names, fontsize=7.5)
            axes.tick_params(labelbottom=place + columns >= count, labelleft=place % columns == 0)
        assert image is not None
        bar = figure.colorbar(image, ax=list(panels), shrink=0.8, label="cosine similarity")
        for sign in (-1, 1):
            bar.ax.axhline(sign * result.chance, color=BLACK, linewidth=0.8, linestyle=":")
        figure.suptitle(_beyond(result), fontsize=9)
    return figure


def screen(result: Comparison) -> go.Figure:
    """One heat map with a slider over layers."""
    figure = go.Figure()
    marks = result.significant
    for place in range(len(result.layers)):
        text = [
            [f"{value:.2f}{'*' if mark else ''}" for value, mark in zip(values, row, strict=True)]
            for values, row in zip(result.cosines[place], marks[place], strict=True)
        ]
        figure.add_heatmap(
            z=result.cosines[place], x=list(result.names), y=list(result.names), zmin=-1, zmax=1,
            colorscale="PuOr_r", colorbar_title="cosine", text=text, texttemplate="%{text}",
            customdata=result.p[place], visible=place == 0,
            hovertemplate="%{y} and %{x}: %{z:.3f}, p %{customdata:.3g}<extra></extra>",
        )  # fmt: skip
    steps = [
        {
            "method": "update",
            "label": str(layer),
            "args": [
                {"visible": [i == place for i in range(len(result.layers))]},
                {"title.text": f"block {layer}; {_beyond(result)}"},
            ],
        }
        for place, layer in enumerate(result.layers)
    ]
    return figure.update_layout(
        template="simple_white",
        title=f"block {result.layers[0]}; {_beyond(result)}",
        yaxis_autorange="reversed",
        sliders=[{"steps": steps, "currentvalue": {"prefix": "block "}, "pad": {"t": 60}}],
        margin={"l": 90, "r": 20, "t": 50, "b": 60},
    )


def _beyond(result: Comparison) -> str:
    random = f"random directions (dotted: |cosine| {result.chance:.2f}, which 1 in 20 exceeds)"
    return f"* beyond {random if result.null == 'random' else f'{result.n_draws} shuffles of the labels'}"
