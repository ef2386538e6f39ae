"""Draw cosine similarities between layers, and between named sets at each layer (matplotlib and plotly)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, DIVERGING, GREY, plain, sliding, styled

if TYPE_CHECKING:
    from analysis.similarity.cosines import Comparison, CosineMap


def map_paper(result: CosineMap) -> Figure:
    """Draw a heat map of cosines between layers, with numbers in the cells if there is room for them."""
    rows, columns = result.cosines.shape
    with styled():
        figure = canvas((1.9 + 0.42 * columns, 1.3 + 0.42 * rows))
        axes = figure.add_subplot()
        image = axes.imshow(result.cosines, vmin=-1, vmax=1, cmap=DIVERGING, origin="lower")
        axes.set_xticks(range(columns), [str(layer) for layer in result.other_layers])
        axes.set_yticks(range(rows), [str(layer) for layer in result.layers])
        first, second = result.names
        axes.set_xlabel("block" if first == second else f"block ({second})")
        axes.set_ylabel("block" if first == second else f"block ({first})")
        axes.grid(False)
        marks = result.significant
        if max(rows, columns) <= 16:
            for (row, column), value in np.ndenumerate(result.cosines):
                shade = "white" if abs(value) > 0.65 else "black"
                text = f"{value:.2f}{'*' if marks[row, column] else ''}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=shade)
        else:
            y, x = np.nonzero(~marks)
            axes.scatter(x, y, s=5, color=GREY, marker="x", linewidths=0.5)
        bar = figure.colorbar(image, ax=axes, shrink=0.85, label="cosine similarity")
        for sign in (-1, 1):
            bar.ax.axhline(sign * result.chance, color=BLACK, linewidth=0.8, linestyle=":")
        title = f"{first}" if first == second else f"{first} and {second}"
        beyond = "random directions" if result.null == "random" else "shuffled labels"
        mark = "*" if max(rows, columns) <= 16 else "no cross:"
        axes.set_title(f"{title}\n{mark} beyond {beyond}", fontsize=8.5)
    return figure


@literally
def map_screen(result: CosineMap) -> go.Figure:
    """Draw a heat map of cosines between layers."""
    first, second = result.names
    figure = go.Figure(
        go.Heatmap(
            z=result.cosines,
            x=list(result.other_layers),
            y=list(result.layers),
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar_title="cosine",
            text=np.where(result.significant, "*", ""),
            texttemplate="%{text}",
            customdata=result.p,
            hovertemplate="block %{y} and block %{x}: %{z:.3f}, p %{customdata:.3g}<extra></extra>",
        )
    )
    same = first == second
    figure.update_layout(
        title=first if same else f"{first} and {second}",
        xaxis_title="block" if same else f"block ({second})",
        yaxis_title="block" if same else f"block ({first})",
    )
    return plain(figure)


def comparison_paper(result: Comparison) -> Figure:
    """Draw one heat map per layer. Its lower half shows numbers, with a star at each cosine that is beyond chance."""
    count, names = len(result.layers), len(result.names)
    columns = min(4, count)
    lines = -(-count // columns)
    marks = result.significant
    size = 0.75 + 0.42 * names
    with styled():
        figure = canvas((size * columns + 1.6, size * lines + 0.9))
        panels = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel()
        image = None
        for place, axes in enumerate(panels):
            if place >= count:
                axes.set_visible(False)
                continue
            axes.grid(False)
            shown = np.where(np.tri(names, dtype=bool), result.cosines[place], np.nan)
            image = axes.imshow(shown, vmin=-1, vmax=1, cmap=DIVERGING)
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


@literally
def comparison_screen(result: Comparison) -> go.Figure:
    """Draw one heat map with a slider over layers."""
    figure = go.Figure()
    marks = result.significant
    for place in range(len(result.layers)):
        text = [
            [f"{value:.2f}{'*' if mark else ''}" for value, mark in zip(values, row, strict=True)]
            for values, row in zip(result.cosines[place], marks[place], strict=True)
        ]
        figure.add_heatmap(
            z=result.cosines[place], x=list(result.names), y=list(result.names), zmin=-1, zmax=1,
            colorscale=DIVERGING, colorbar_title="cosine", text=text, texttemplate="%{text}",
            customdata=result.p[place], visible=place == 0,
            hovertemplate="%{y} and %{x}: %{z:.3f}, p %{customdata:.3g}<extra></extra>",
        )  # fmt: skip
    titles = [f"block {layer}; {_beyond(result, dotted=False)}" for layer in result.layers]
    return sliding(figure, result.layers, titles, gap=60).update_layout(yaxis_autorange="reversed", margin_l=90)


def _beyond(result: Comparison, *, dotted: bool = True) -> str:
    line = "dotted: " if dotted else ""
    random = f"random directions ({line}|cosine| {result.chance:.2f}, which 1 in 20 exceeds)"
    return f"* beyond {random if result.null == 'random' else f'{result.n_draws} shuffles of the labels'}"
